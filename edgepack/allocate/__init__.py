"""What every format and rank costs a weight, and what a size buys.

Takes H of every weight and the formats to try; gives costs as files and, for a size, a format and a
rank for every matrix. May import ``decompose``, ``calibration``, ``planning`` and below.
"""
