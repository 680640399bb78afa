"""Finished models side by side: ``evaluate`` (files), ``compare`` (recipes at sizes).

Takes output folders, files or recipes; gives tables, points and pictures. May import ``pipeline``
and below.
"""
