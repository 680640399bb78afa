"""Targets: kinds of files that runtimes read, one file each; the file's name follows ``--target``.

Each answers the questions of `planning.target.Target`: takes a model and formats; gives sizes,
files and baselines. May import ``export``, ``runtimes`` and below; what is heavy inside methods.
"""
