"""Anchors: boxes that a detector starts from, on grids over the image, and sizes for them, from a data set's boxes.

They depend on shapes alone, so all is computed once, in NumPy, and becomes a constant of a jitted function. Boxes are
float32 ``[k, 4]`` xyxy in pixels, sizes ``[n, 2]`` width and height in pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cnnjax.types import Array, UserError

_STARTS = 8  # of k-means: one may end in a poor local optimum
_ROUNDS = 300  # of k-means, which settles in some dozens; they end it where assignments go in a circle


class DefaultBoxes(NamedTuple):
    """Default boxes of SSD (Liu et al. 2016, sec. 2.2), for feature maps from large to small.

    Each cell of map i has boxes of these sizes, in units of the image: scale_i and √(scale_i · scale_{i+1}), square,
    and for each ratio r a box √r times as wide and 1/√r times as high as scale_i, and the same box upright.

    Attributes:
      ratios: aspect ratios for each map, each > 1.
      scales: a share of the image for each map, and one more.
      steps: distance of the cells in pixels for each map; None: the image's size over the map's.
    """

    ratios: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]
    steps: tuple[int, ...] | None = None

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of boxes in a cell of each map."""
        return tuple(2 + 2 * len(ratios) for ratios in self.ratios)


SSD300 = DefaultBoxes(
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    steps=(8, 16, 32, 64, 100, 300),
)
"""Boxes for COCO: 8,732 on maps of 38, 19, 10, 5, 3 and 1 pixels of an image of 300."""

SSD512 = DefaultBoxes(
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
    steps=(8, 16, 32, 64, 128, 256, 512),
)
"""Boxes for COCO: 24,564 on maps of 64, 32, 16, 8, 4, 2 and 1 pixels of an image of 512."""


def even_default_boxes(maps: int, least: float = 0.2, greatest: float = 0.9) -> DefaultBoxes:
    """Default boxes for any number of feature maps, whose scales have even steps (Liu et al. 2016, eq. 4).

    The ratios are 2 and 3, on the first map and the last two only 2, as in SSD300.
    """
    if maps < 2:
        raise ValueError(f"expected at least 2 feature maps, got {maps}")
    scales = tuple(least + (greatest - least) * i / (maps - 1) for i in range(maps))
    ratios = tuple((2.0,) if i in (0, maps - 2, maps - 1) else (2.0, 3.0) for i in range(maps))
    return DefaultBoxes(ratios, (*scales, 1.0))


def default_boxes(
    boxes: DefaultBoxes, image_shape: Sequence[int], feature_shapes: Sequence[Sequence[int]]
) -> np.ndarray:
    """SSD's default boxes of an image, equal to torchvision's ``DefaultBoxGenerator``.

    They may reach over the border, but none is wider or higher than the image.

    Args:
      boxes: their scales and aspect ratios.
      image_shape: height, width (, channels) in pixels.
      feature_shapes: height, width of each feature map.

    Returns:
      [k, 4]: map by map, in each row by row, cell by cell, in each cell the squares first.

    Raises:
      ValueError: there is another number of feature maps than of scales.
    """
    if not len(feature_shapes) == len(boxes.ratios) == len(boxes.scales) - 1:
        raise ValueError(
            f"expected a scale for each of {len(feature_shapes)} feature maps and one more, and ratios for each, got "
            f"{len(boxes.scales)} scales and {len(boxes.ratios)} tuples of ratios"
        )
    height, width = image_shape[:2]
    grids = []
    for i, (rows, columns) in enumerate(feature_shapes):
        scale, after = boxes.scales[i : i + 2]
        between = math.sqrt(scale * after)
        sides = [(scale, scale), (between, between)]
        for ratio in boxes.ratios[i]:
            wide, high = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sides += [(wide, high), (high, wide)]
        sizes = np.minimum(sides, 1) * (width, height)
        stride = (height / rows, width / columns) if boxes.steps is None else (boxes.steps[i], boxes.steps[i])
        grids.append(grid((rows, columns), stride, sizes))
    return np.concatenate(grids)


def grid(
    feature_shape: Sequence[int], stride: Sequence[float], sizes: Array, offset: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Anchors of the same sizes in each cell of a feature map.

    Args:
      feature_shape: height, width of the map, in cells.
      stride: distance of cells in pixels, of rows and of columns.
      sizes: [a, 2], width and height of each anchor, in pixels.
      offset: center of the anchors in a cell, row and column: by default the cell's; (0, 0) as in Faster R-CNN.

    Returns:
      [rows · columns · a, 4]: row by row, cell by cell, in each cell in the order of ``sizes``.
    """
    rows, columns = ((np.arange(feature_shape[i]) + offset[i]) * stride[i] for i in (0, 1))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    centers = np.stack([x, y], -1)[:, :, None]
    half = np.asarray(sizes, np.float64) / 2
    return np.concatenate([centers - half, centers + half], -1).reshape(-1, 4).astype(np.float32)


class Clusters(NamedTuple):
    """Result of ``kmeans``.

    Attributes:
      sizes: [k, 2] float32, width and height, from small to large area.
      average_iou: see ``average_iou``.
    """

    sizes: np.ndarray
    average_iou: float


def kmeans(sizes: Array, k: int, rng: np.random.Generator) -> Clusters:
    """Sizes of anchors for a data set: k-means with the distance 1 − IoU (Redmon & Farhadi 2017, YOLO9000, sec. 2).

    The start is k-means++'s (Arthur & Vassilvitskii 2007): each center is one of the sizes, drawn with a probability
    that grows with its squared distance from the centers before it. Then centers are medians of their clusters, which
    overlap more than the means (5 anchors of BCCD: 0.851 against 0.847). As they do not minimize the distance exactly,
    the best centers that were passed are given, of 8 starts.

    Args:
      sizes: [n, 2], width and height of each box of the training set, in any unit.
      k: number of anchors.
      rng: draws the start; the same generator gives the same anchors.

    Raises:
      UserError: fewer than k different sizes, or one that is not positive.
    """
    sizes = _checked(sizes)
    different = len(np.unique(sizes, axis=0))
    if not 1 <= k <= different:
        raise UserError(f"{k} anchors from {different} different sizes of boxes: from 1 to {different} are possible")
    best = max((_settled(sizes, _start(sizes, k, rng)) for _ in range(_STARTS)), key=lambda found: found.average_iou)
    order = np.argsort(best.sizes.prod(1), kind="stable")
    return Clusters(best.sizes[order].astype(np.float32), best.average_iou)


def _start(sizes: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centers [k, 2] among the sizes, by k-means++."""
    centers = sizes[rng.integers(len(sizes))][None]
    while len(centers) < k:
        weights = np.square(1 - _shape_iou(sizes, centers).max(1))
        centers = np.concatenate([centers, sizes[rng.choice(len(sizes), p=weights / weights.sum())][None]])
    return centers


def _settled(sizes: np.ndarray, centers: np.ndarray) -> Clusters:
    """The best centers on the way to those that are the medians of their clusters."""
    best, nearest = Clusters(centers, -1.0), None
    for _ in range(_ROUNDS):
        overlap = _shape_iou(sizes, centers)
        if (average := float(overlap.max(1).mean())) > best.average_iou:
            best = Clusters(centers, average)
        before, nearest = nearest, overlap.argmax(1)
        if before is not None and np.array_equal(before, nearest):
            break
        members = [sizes[nearest == i] for i in range(len(centers))]
        # A center that lost all its boxes stays where it is.
        pairs = zip(members, centers, strict=True)
        centers = np.stack([np.median(each, 0) if len(each) else center for each, center in pairs])
    return best


def average_iou(sizes: Array, anchors: Array) -> float:
    """Mean over boxes of the IoU with the best of the anchors, laid on the same center (YOLO9000, Fig. 2, Table 1).

    Args:
      sizes: [n, 2], width and height.
      anchors: [k, 2], in the same unit.

    Raises:
      UserError: there are no sizes, or one is not positive.
    """
    return float(_shape_iou(_checked(sizes), _checked(anchors)).max(1).mean())


def _checked(sizes: Array) -> np.ndarray:
    sizes = np.asarray(sizes, np.float64)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes):
        raise UserError(f"sizes of boxes are [n, 2], width and height, n from 1; got shape {sizes.shape}")
    good = np.isfinite(sizes).all(1) & (sizes > 0).all(1)
    if not good.all():
        width, height = sizes[~good][0]
        raise UserError(f"{(~good).sum()} of {len(sizes)} boxes have no area, the first is {width:g} by {height:g}")
    return sizes


def _shape_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [n, m] of boxes of sizes [n, 2] and [m, 2] on one center."""
    intersection = np.minimum(a[:, None], b).prod(-1)
    return intersection / (a.prod(-1)[:, None] + b.prod(-1) - intersection)
