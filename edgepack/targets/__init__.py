"""Targets: kinds of files that runtimes read, one file each; the file's name follows ``--target``.

Each answers the questions of `planning.target.Target`, and imports what is heavy when it is asked.
"""
