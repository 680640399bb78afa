"""Distil the original model into the scales, factors and norms of the packed one.

Takes decomposed weights, tokens and the original; gives the same files, trained. `sliced` does this
with a sliced model before it is packed. May import ``decompose``, ``calibration`` and below.
"""
