"""Readers of files: images, class folders, tensorflow-datasets, and annotations, one format per module."""
