"""Whether a folder is what its manifest says: every byte, the structure of its files, the formats
that are in them, its adapters, and on request its measurements.

Takes an output folder or an adapter's; gives a list of `checks.Check`. Nothing is written. May
import all rooms but ``cli`` and ``demo``.
"""
