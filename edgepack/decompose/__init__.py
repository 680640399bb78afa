"""W ≈ Q + L·R (CALDERA), each weight in the metric of its own H.

Takes weights, their H, formats and ranks; gives one file a weight with Q, L and R. `caldera`,
`ldlq` and `low_rank` are pure functions of tensors. May import ``calibration`` and below.
"""
