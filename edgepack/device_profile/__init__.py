"""What a device can do, measured, and so how fast files will be there.

Takes the ``bench.json`` of a device; gives its limits, the types that are slow on it, predicted
speeds. A room of its own, since every module of ``devices`` is a plug-in. Imports nothing but
``core``.
"""
