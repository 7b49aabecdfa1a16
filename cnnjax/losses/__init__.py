"""Losses that optax lacks, one value per example: the caller masks them and takes the mean."""

from cnnjax.losses.rbf import rbf_map_loss
from cnnjax.losses.yolo import yolo_loss

__all__ = ["rbf_map_loss", "yolo_loss"]
