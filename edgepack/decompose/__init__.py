"""W ≈ Q + L·R (CALDERA), each weight in the metric of its own H."""
