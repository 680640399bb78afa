"""Hostile inputs for everything that edgepack reads: ``python -m tests.fuzz``, ``make fuzz``."""
