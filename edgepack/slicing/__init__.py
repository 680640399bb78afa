"""Rotate the residual stream so that few of its coordinates matter, and drop the others.

SliceGPT (Ashkboos et al., arXiv 2401.15024). `globally`: one rotation for the whole model, whose
result is an ordinary checkpoint of its family. `per_block`: a rotation per block, as published.
"""
