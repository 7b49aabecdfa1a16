"""Metrics as sums that are divided last."""
