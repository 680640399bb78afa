"""Rotate the residual stream so that few of its coordinates matter, and drop the others.

SliceGPT (Ashkboos et al., arXiv 2401.15024): `globally` or `per_block`. Takes a model and tokens;
gives the Hugging Face folder of a narrower model. May import ``calibration``, ``model`` and below.
"""
