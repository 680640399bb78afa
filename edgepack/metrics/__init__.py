"""Metrics: divergence, perplexity, multiple choice, speed."""
