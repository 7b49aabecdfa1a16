"""Settings of detectors: their heads; their training images, how each is seen, its colors, room for boxes, sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from cnnjax.data import augment, color, joint, pipeline, targets, views
from cnnjax.data.sources import Kept, Source
from cnnjax.data.splits import Splits
from cnnjax.losses.yolo import BoxLoss
from cnnjax.ops.anchors import Clusters, even_default_boxes, kmeans
from cnnjax.settings.data import Batches, Reading
from cnnjax.settings.fields import LOCATES, Fraction, NonNegativeInt, Pixels, Positive, PositiveInt, Range
from cnnjax.types import Example, UserError

GREATEST_SCALE = 0.9  # of SSD's default boxes (Liu et al. 2016, sec. 2.2)
STRIDE = 32  # of the coarsest map of a detector, which sizes are multiples of

Half = Annotated[float, Range("in 0 … 0.5, 0.5 excluded", 0, 0.5, with_high=False)]
Part = Annotated[float, Range("in 0 … 1", 0, 1)]
Factor = Annotated[float, Range("1 or more", 1, 100)]


@dataclass(frozen=True)
class YOLOHead:
    """YOLOv3's grids over a base, and their loss."""

    model: ClassVar[str] = "yolov3"

    grid_strides: tuple[PositiveInt, ...] = (32, 16, 8)
    """Strides of the grids in pixels, coarse to fine, among those of the base's feature maps."""
    grid_features: tuple[PositiveInt, ...] = (192, 128, 96)
    """Features of each grid's neck."""
    grid_depths: tuple[NonNegativeInt, ...] = (1, 1, 1)
    """1×1 convolutions of each neck, with 3×3 ones between them; YOLOv3 has 3 and features 512 256 128."""
    anchors: PositiveInt = 3
    """Anchors of each grid."""
    box_loss: BoxLoss = "ciou"
    """codes: of offsets and log sizes, YOLOv3's; ciou: 1 − complete IoU, YOLOv4's."""
    box_weight: Positive = 2.0
    """Weight of the box loss; those of objectness and class are 1."""
    ignore_threshold: Fraction = 0.7
    """IoU with an object from which a prediction is not blamed for its objectness."""

    def check(self, size: int) -> None:
        """Raises UserError where the numbers do not fit each other, or the size of the images."""
        lengths = {len(self.grid_strides), len(self.grid_features), len(self.grid_depths)}
        if len(lengths) > 1 or not all(lengths):
            raise UserError("--grid-strides, --grid-features and --grid-depths want a number for each grid")
        if size % max(self.grid_strides):
            raise UserError(f"--size {size} must be a multiple of the coarsest stride, {max(self.grid_strides)}")

    def clusters(self, sizes: np.ndarray, seed: int) -> Clusters:
        """Anchors for boxes of ``sizes`` [n, 2], by k-means."""
        return kmeans(sizes, self.anchors * len(self.grid_strides), np.random.default_rng(seed))

    def fields(self, sizes: np.ndarray) -> dict[str, Any]:
        """Fields of the model, with anchors of ``sizes`` [k, 2]."""
        return {
            "anchors": tuple(tuple(float(x) for x in pair) for pair in sizes.round(1)),
            "grid_strides": self.grid_strides,
            "features": self.grid_features,
            "depths": self.grid_depths,
        }

    @property
    def of_task(self) -> dict[str, Any]:
        """Options of ``tasks.detect.task``."""
        options = {"box_loss": self.box_loss, "ignore_threshold": self.ignore_threshold}
        return {"weights": {"box": self.box_weight}, **options}


@dataclass(frozen=True)
class SSDHead:
    """SSD's default boxes on a base's feature maps and further, smaller ones, and their loss."""

    model: ClassVar[str] = "ssd"

    map_strides: tuple[PositiveInt, ...] = (16, 32)
    """Strides in pixels of the base's feature maps that have default boxes."""
    extra_features: tuple[PositiveInt, ...] = (512, 256, 256, 128)
    """Features of each map more, half the size of the one before."""
    least_scale: Fraction = 0.2
    """Side of the smallest default box, as a share of the image."""
    negatives: Positive = 3.0
    """Boxes of the background that count in the loss, the hardest, for each that has an object."""

    def check(self) -> None:
        """Raises UserError where there are fewer than 2 maps, or the smallest box is no smaller than the largest."""
        if len(self.map_strides) + len(self.extra_features) < 2:
            raise UserError("--map-strides and --extra-features: SSD wants 2 feature maps or more")
        if self.least_scale >= GREATEST_SCALE:
            raise UserError(f"--least-scale {self.least_scale} must be below {GREATEST_SCALE}, the largest map's")

    def fields(self, size: int) -> dict[str, Any]:
        """Fields of the model for square images of ``size`` pixels."""
        maps = len(self.map_strides) + len(self.extra_features)
        return {
            "strides": self.map_strides,
            "extras": tuple((features, 2) for features in self.extra_features),
            "default": even_default_boxes(maps, self.least_scale, GREATEST_SCALE),
            "image_shape": (size, size, 3),
        }

    @property
    def of_task(self) -> dict[str, Any]:
        """Options of ``tasks.detect.task``."""
        return {"negatives": self.negatives}


@dataclass(frozen=True)
class Joint:
    """Classes in a tree, and training images that only have a label (YOLO9000)."""

    tree: Annotated[Path | None, LOCATES] = None
    """File of a tree that has the classes as nodes: nested JSON, Darknet's .tree, or WordNet's pairs of ids."""
    labelled: Annotated[Path | None, LOCATES] = None
    """Folder of class folders whose images have no boxes, only their class."""
    without_boxes: tuple[str, ...] = ()
    """Classes whose boxes are not used in training, only that their images show them; evaluation uses them."""

    @property
    def asked(self) -> bool:
        """True where the user gave any of it."""
        return self != Joint()

    def splits(self, found: Splits) -> Splits:
        """Splits with all of that, see `joint.join`, which has the errors."""
        return joint.join(found, self.tree, self.labelled, self.without_boxes) if self.asked else found


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
    upside_down: Part = 0.0
    """Share of the images that are mirrored top to bottom, for those that have no up: cells, land from above."""
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
        """Random change of one example on the device: its colors, top to bottom."""
        ops: list[augment.Op] = []
        if self.upside_down:
            ops.append(partial(augment.random_flip_up_down, probability=self.upside_down))
        if self.hue > 0 or self.saturation > 1 or self.exposure > 1:
            ops.append(partial(color.random_hsv, hue=self.hue, saturation=self.saturation, exposure=self.exposure))
        return augment.compose(*ops)
