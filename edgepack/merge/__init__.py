"""Several checkpoints of one shape as one, with mergekit's recipes."""
