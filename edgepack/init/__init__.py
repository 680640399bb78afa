"""The recipe that `edgepack init` writes: a model's headers and a device → YAML with its reasons.

Takes a `Checkpoint` and a `Device`; gives a text that was planned before it is written. May import
``pipeline``, ``catalogue`` and below.
"""
