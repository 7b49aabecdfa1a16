"""Metrics: sums over examples that are divided last."""
