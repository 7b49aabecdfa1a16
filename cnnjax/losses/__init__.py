"""Losses that optax lacks, one value per example: the caller masks them, sums, and divides last."""

from cnnjax.losses.rbf import rbf_map_loss
from cnnjax.losses.segmentation import PixelLoss, dice, pixel_cross_entropy
from cnnjax.losses.ssd import MultiboxLoss, multibox_loss
from cnnjax.losses.yolo import yolo_loss

__all__ = [
    "MultiboxLoss",
    "PixelLoss",
    "dice",
    "multibox_loss",
    "pixel_cross_entropy",
    "rbf_map_loss",
    "yolo_loss",
]
