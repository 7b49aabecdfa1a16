"""Metrics as sums over examples that are divided last."""
