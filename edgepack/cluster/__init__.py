"""Work on several machines: an `Executor` on Ray, and nothing else.

Takes items of work; does each on some machine of a cluster, and writes its file here. A machine
that reads the same files reads them itself; others are sent what an item reads. May import
``checkpoint``, ``core`` and ``errors``. Ray is an extra, imported by `connect` alone.
"""
