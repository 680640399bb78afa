"""A merge in the metric of what the models compute: `merge.weighted: fisher`."""
