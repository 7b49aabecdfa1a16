"""Settings of a detector's training images: how each is seen, its colors, room for its boxes, sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from cnnjax.data import augment, color, pipeline, targets, views
from cnnjax.data.sources import Kept, Source
from cnnjax.settings.data import Batches, Reading
from cnnjax.settings.fields import Pixels, PositiveInt, Range
from cnnjax.types import Example, UserError

STRIDE = 32  # of the coarsest map of a detector, which sizes are multiples of

Half = Annotated[float, Range("in 0 … 0.5, 0.5 excluded", 0, 0.5, with_high=False)]
Part = Annotated[float, Range("in 0 … 1", 0, 1)]
Factor = Annotated[float, Range("1 or more", 1, 100)]


@dataclass(frozen=True)
class DetectionImages:
    """Random views and colors of a detector's training images."""

    view: Literal["jitter", "ssd", "whole"] = "jitter"
    """jitter: the sides of the image are moved (YOLO); ssd: zoomed out, or a part that a box overlaps; whole: all of
    it."""
    jitter: Half = 0.2
    """Largest move of each side, as a share of the image, in and out; with --view jitter."""
    mosaic: Part = 0.0
    """Share of the training images that are put together from four (YOLOv4)."""
    flip: Part = 0.5
    """Share of the images that are mirrored."""
    hue: Annotated[float, Range("in 0 … 0.5", 0, 0.5)] = 0.1
    """Largest change of the hue, as a share of the circle."""
    saturation: Factor = 1.5
    """Largest factor of the saturation, and of what it is divided by."""
    exposure: Factor = 1.5
    """The same of the brightness."""
    most_boxes: PositiveInt | None = None
    """Boxes of a training image that are used; None: all. More cost memory and time."""
    scales: tuple[Pixels, Pixels] | None = None
    """Smallest and largest size of the images, multiples of 32, of which one is drawn every 10 steps (YOLOv2: 320 608);
    None: one size."""

    def batches(
        self, reading: Reading, source: Source, batch_size: int, seed: int, size: int, proportions: views.Proportions
    ) -> Batches:
        """Step → batches from there on; prints how many boxes they have room for. Images are decoded once if they fit.

        ``image`` uint8 [n, s, s, 3], ``boxes`` float32 [n, k, 4], ``labels`` int32 [n, k], ``box_mask``, ``ignore``,
        ``crowd`` and ``difficult`` bool [n, k]; s is ``size``, or one of ``scales``.

        Raises:
          UserError: scales that are none; as `targets.padding`.
        """
        if sum(3 * record.height * record.width for record in targets.records(source)) <= reading.in_memory_bytes:
            source = Kept(source)
        load, size_at = self.load(source, proportions), self.size_at(seed)
        if size_at is None:
            load = partial(load, size=size)
        return reading.batches(source, batch_size, seed, load, size_at)

    def load(self, source: Source, proportions: views.Proportions) -> pipeline.Load:
        """(generator, index, size) → example of a training batch; prints how many boxes it has room for."""
        choosers = {"jitter": (views.jitter(self.jitter),), "ssd": (views.zoom_out(), views.iou_crop()), "whole": ()}
        chosen = choosers[self.view]
        options: dict[str, Any] = {"proportions": proportions, "flip": self.flip, "centers": self.view == "ssd"}
        pad = targets.padding({"train": source}, self.most_boxes, mosaic=self.mosaic > 0)

        def load(rng: np.random.Generator, index: int, size: int) -> Example:
            if rng.random() < self.mosaic:
                four = [source[i] for i in views.partners(rng, index, len(source))]
                return pad(views.mosaic(size, rng, four, *chosen, **options))
            return pad(views.random_view(size, *chosen, **options)(rng, source[index]))

        return load

    def size_at(self, seed: int) -> Callable[[int], int] | None:
        """Step → size of its images; None where all have one.

        Raises:
          UserError: no sizes, or not multiples of 32.
        """
        if self.scales is None:
            return None
        low, high = self.scales
        if low > high or low % STRIDE or high % STRIDE:
            raise UserError(f"--scales {low} {high}: expected the smaller, then the larger, both multiples of {STRIDE}")
        return pipeline.multi_scale(seed, range(low, high + 1, STRIDE))

    def op(self) -> augment.Op:
        """Random change of colors of one example, on the device."""
        changed = self.hue > 0 or self.saturation > 1 or self.exposure > 1
        change = partial(color.random_hsv, hue=self.hue, saturation=self.saturation, exposure=self.exposure)
        return augment.compose(*([change] if changed else []))
