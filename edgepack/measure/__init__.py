"""Metrics of the files just written, through their runtime.

Takes the files of ``export`` and the original; gives perplexity, KL and top-1 of ours and of the
target's nearest baselines. May import ``export``, ``metrics``, ``runtimes`` and below.
"""
