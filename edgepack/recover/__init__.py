"""The recover stage: distil the original model into scales, factors and norms of the packed one."""
