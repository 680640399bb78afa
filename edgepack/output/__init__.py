"""The output folder, and where its content came from.

Takes files; gives a folder that is whole or absent, replaces nothing that edgepack did not write,
and names sources without paths. May import ``planning``, ``recipe`` and ``core``.
"""
