"""The recover stage: distil the original model into the scales, factors and norms of the packed."""
