"""A packed model and adapters → a new packed model that needs no adapter.

Takes an output folder and adapters of it; gives an output folder. May import all rooms but ``cli``
and ``comparison``.
"""
