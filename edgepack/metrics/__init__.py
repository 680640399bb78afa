"""What is measured of a model: KL, perplexity, multiple choice, tokens per second.

Takes runtimes and tokens or tasks; gives numbers with their errors. May import ``runtimes`` and
below.
"""
