"""Reads every weight once before anything is computed: is it a number, can float16 hold it?

Takes the model as found; gives warnings, or an error that names the weight. May import
``planning``, ``checkpoint`` and below.
"""
