"""Speed and memory of finished files on the machine that is to run them, beside its limits.

Takes output folders or files, and a device; gives tokens per second, memory, shares of the roofline,
as JSON, tables and pictures. Measures in processes of their own (`worker`, `native/`), which take
turns. May import ``output``, ``report``, ``metrics``, ``runtimes`` and below.
"""
