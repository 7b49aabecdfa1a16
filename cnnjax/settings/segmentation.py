"""Settings of segmenters: their images, how training sees them, and the loss."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np

from cnnjax.data import augment, pipeline, segmented, views
from cnnjax.data.sources import Kept, Source
from cnnjax.metrics.segmentation import median_frequency
from cnnjax.settings.data import Batches, Reading
from cnnjax.settings.fields import Factor, Fraction, NonNegative, Pixels, Range

Part = Annotated[float, Range("in 0 … 1", 0, 1)]


@dataclass(frozen=True)
class SegmentationImages:
    """Random parts and colors of a segmenter's training images."""

    crop: tuple[Pixels, Pixels] | None = None
    """Height and width of the parts that training sees; None: of the images."""
    scale: tuple[Factor, Factor] = (0.5, 2.0)
    """Limits of the factor by which an image is made larger or smaller before."""
    mirror: Part = 0.5
    """Share of the images that are mirrored."""
    brightness: Fraction = 0.2
    """Largest change of brightness: 0.1 multiplies pixels by 0.9 … 1.1."""
    contrast: Fraction = 0.2
    """Largest change of contrast: 0.1 multiplies the distance from the mean gray by 0.9 … 1.1."""

    def batches(self, reading: Reading, source: Source, batch_size: int, seed: int, size: tuple[int, int]) -> Batches:
        """Step → batches from there on: ``image`` uint8 [n, h, w, 3], ``segmentation`` uint8 [n, h, w].

        Images are decoded once if they fit; they may differ in size.
        """
        view = views.random_scale(*(self.crop or size), self.scale, self.mirror)
        if sum(4 * height * width for height, width in segmented.sizes(source)) <= reading.in_memory_bytes:
            source = Kept(source)
        return reading.batches(source, batch_size, seed, pipeline.loader(source, view))

    def op(self) -> augment.Op:
        """Random change of colors of one example, on the device."""
        return augment.compose(
            partial(augment.random_brightness, max_change=self.brightness),
            partial(augment.random_contrast, max_change=self.contrast),
        )


@dataclass(frozen=True)
class PixelLoss:
    """Loss of a segmenter."""

    balance: bool = False
    """Weigh classes by their median frequency in the training masks, so that rare ones count more."""
    focus: NonNegative = 0.0
    """Gamma of the focal loss; 0: cross-entropy."""
    dice: NonNegative = 0.0
    """Weight of the Dice loss, which is added."""

    def weights(self, source: Source) -> np.ndarray | None:
        """Weights of the classes, float32 [classes]; every mask of ``source`` is read."""
        return median_frequency(*segmented.class_pixels(source)) if self.balance else None
