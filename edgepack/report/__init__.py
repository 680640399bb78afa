"""A manifest as a page, and what lies at a path, as facts and as text.

Takes manifests, plans, recipes and files; prints nothing. May import ``planning.target``,
``recipe`` and ``core``; torch only inside functions.
"""
