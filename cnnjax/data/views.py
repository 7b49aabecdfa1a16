"""Random views of images with boxes, for detectors: choosers draw a window, and one resampling shows it.

    random_view(416, jitter(0.2))               # Darknet's
    random_view(300, zoom_out(), iou_crop())    # SSD's
    random_scale(360, 480, (0.5, 2.0))          # a segmenter's
    mosaic(416, rng, four, jitter(0.3))         # YOLOv4's, of four examples

A chooser is given the window so far, first the whole image, and may leave the image: what lies outside is ``FILL``.
Every field moves with the pixels, see `transforms`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from cnnjax.data import transforms
from cnnjax.data.preparation import Geometry, Window
from cnnjax.data.transforms import MIN_VISIBLE, RandomTransform
from cnnjax.types import Example

Chooser = Callable[[np.random.Generator, Window, np.ndarray], Window]
"""(generator, window, boxes [k, 4]) → window; all in pixels of the image."""
Proportions = Literal["squeeze", "letterbox"]  # lost, or kept by adding what lies beside the window

FILL = 128
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
DRAWS = 50  # of an overlap; then the window stays
CENTER = (0.2, 0.8)  # Darknet's limits of the point where the images of a mosaic meet, as shares of its sides


# ---- choosers ----


def jitter(share: float = 0.2) -> Chooser:
    """Moves each side of the window by up to ``share`` of its width or height, in or out: scale, place, proportions.

    YOLO (Redmon et al. 2016, section 2.2): "random scaling and translations of up to 20%"; YOLOv3's cfg has 0.3.
    ``share`` is below 0.5.
    """

    def choose(rng: np.random.Generator, window: Window, boxes: np.ndarray) -> Window:
        left, top, right, bottom = window
        dx, dy = share * (right - left), share * (bottom - top)
        a, b, c, d = rng.uniform(-1, 1, 4)
        return left + a * dx, top + b * dy, right + c * dx, bottom + d * dy

    return choose


def zoom_out(most: float = 4.0, probability: float = 0.5) -> Chooser:
    """Widens the window, with ``probability``, to 1 … ``most`` times its sides; its old content at a random place.

    SSD (Liu et al. 2016, section 3.6), for small objects: a canvas of up to 16 times the image.
    """

    def choose(rng: np.random.Generator, window: Window, boxes: np.ndarray) -> Window:
        if rng.random() >= probability:
            return window
        factor, (left, top, right, bottom) = rng.uniform(1, most), window
        width, height = factor * (right - left), factor * (bottom - top)
        left -= rng.uniform(0, width - (right - left))
        top -= rng.uniform(0, height - (bottom - top))
        return left, top, left + width, top + height

    return choose


def iou_crop(
    overlaps: Sequence[float] = OVERLAPS,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.5, 2.0),
    trials: int = 40,
) -> Chooser:
    """Part of the window in which the center of a box lies, and which overlaps such a box by a drawn IoU at least.

    SSD (Liu et al. 2016, section 2.2), with the numbers of torchvision's ``RandomIoUCrop``. The window stays where 1 is
    drawn, and where there is no box in it.

    Args:
      overlaps: least IoUs, one of which is drawn; 0: any.
      scale: limits of the sides, as shares of the window's.
      ratio: limits of width / height.
      trials: parts that are tried before another overlap is drawn.
    """

    def choose(rng: np.random.Generator, window: Window, boxes: np.ndarray) -> Window:
        if not centered(boxes, window).any():
            return window
        whole = np.array([window[2] - window[0], window[3] - window[1]])
        for _ in range(DRAWS):
            if (least := overlaps[int(rng.integers(len(overlaps)))]) >= 1:
                break
            sides = whole * rng.uniform(*scale, (trials, 2))
            corners = window[:2] + (whole - sides) * rng.random((trials, 2))
            parts, aspect = np.concatenate([corners, corners + sides], axis=1), sides[:, 0] / sides[:, 1]
            good = (ratio[0] <= aspect) & (aspect <= ratio[1]) & (_overlap(parts, boxes) >= least)
            if good.any():
                return tuple(parts[good.argmax()].tolist())
        return window

    return choose


def centered(boxes: np.ndarray, windows: np.ndarray | Window) -> np.ndarray:
    """Mask [..., k] of the boxes [k, 4] whose centers lie in windows [..., 4]."""
    centers, windows = (boxes[:, :2] + boxes[:, 2:]) / 2, np.asarray(windows)[..., None, :]
    return ((centers > windows[..., :2]) & (centers < windows[..., 2:])).all(-1)


def _overlap(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Largest IoU [t] of windows [t, 4] with those of the boxes [k, 4] that are centered in it; −1 without such."""
    each = windows[:, None]
    common = (np.minimum(each[..., 2:], boxes[:, 2:]) - np.maximum(each[..., :2], boxes[:, :2])).clip(0).prod(-1)
    areas = (windows[:, 2:] - windows[:, :2]).prod(-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return np.where(centered(boxes, windows), common / (areas - common), -1).max(-1)


# ---- views ----


def through(window: Window, height: int, width: int, shape: tuple[int, int], flip: bool = False) -> Geometry:
    """Geometry that shows, in an output of ``shape``, a window of an image of ``height`` × ``width`` and around it."""
    left, top, right, bottom = window
    part = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if part[0] >= part[2] or part[1] >= part[3]:
        return Geometry((1, 1), shape, shape, (0, 0, 1, 1))  # one pixel of it, below the output
    scale = np.array([shape[1] / (right - left), shape[0] / (bottom - top)])
    # Whole pixels, at least one, of what there is of the image; the geometry computes from them where boxes go.
    corner = np.rint((np.array(part[:2]) - (left, top)) * scale).astype(int).clip(0, (shape[1] - 1, shape[0] - 1))
    end = np.rint((np.array(part[2:]) - (left, top)) * scale).astype(int).clip(corner + 1)
    (x, y), (columns, rows) = corner.tolist(), (end - corner).tolist()
    return Geometry((rows, columns), shape, (y, x), None if part == (0, 0, width, height) else part, flip)


def random_view(
    size: int,
    *choosers: Chooser,
    proportions: Proportions = "squeeze",
    flip: float = 0.5,
    centers: bool = False,
    min_visible: float = MIN_VISIBLE,
) -> RandomTransform:
    """Shows the window that ``choosers`` draw, one after the other, in ``size`` × ``size``, in one resampling.

    Args:
      proportions: as evaluation has them: `transforms.squeeze`, or `transforms.letterbox`.
      flip: probability of the mirror image.
      centers: keep a box if its center is in the window, as SSD does, and not by ``min_visible``.
      min_visible: share of a box's area that must be visible for it to be kept.
    """

    def transform(rng: np.random.Generator, example: Example) -> Example:
        window = _chosen(rng, example, choosers)
        if proportions == "letterbox":
            window = _widened(window)
        return _seen(rng, example, window, (size, size), flip, centers, min_visible)

    return transform


def random_scale(
    height: int, width: int, scale: tuple[float, float] = (0.5, 2.0), flip: float = 0.5
) -> RandomTransform:
    """Shows a random part of ``height`` × ``width`` pixels of the image made larger or smaller, proportions kept.

    What lies outside the image is ``FILL``, and in ``segmentation`` no class.

    Args:
      scale: limits of the factor, whose logarithm is uniform between them.
      flip: probability of the mirror image.
    """

    def transform(rng: np.random.Generator, example: Example) -> Example:
        factor = np.exp(rng.uniform(*np.log(scale)))
        (rows, columns), (high, wide) = example["image"].shape[:2], (height / factor, width / factor)
        top, left = (rng.uniform(*sorted((0.0, size - side))) for size, side in ((rows, high), (columns, wide)))
        window = left, top, left + wide, top + high
        return transforms.apply(example, through(window, rows, columns, (height, width), rng.random() < flip), FILL)

    return transform


def mosaic(
    size: int,
    rng: np.random.Generator,
    examples: Sequence[Example],
    *choosers: Chooser,
    proportions: Proportions = "squeeze",
    flip: float = 0.5,
    centers: bool = False,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """Four images that meet at a random point (Bochkovskiy et al. 2020, "YOLOv4", section 3.3).

    Each quarter is filled by a part of its image, at a random place of the window that ``choosers`` draw. Fields of
    `transforms.PER_BOX` have the rows of all four; what is neither such a field nor geometry is the first example's.

    Args:
      size: height and width of the result.
      rng: generator.
      examples: the four, from the upper left one to the lower right one, in rows; with the same fields.
      proportions: as for `random_view`, which has the other arguments, too.
    """
    row, column = (min(max(1, round(size * rng.uniform(*CENTER))), size - 1) for _ in range(2))
    rows, columns = ((0, row), (row, size)), ((0, column), (column, size))
    places = [(top, left, bottom, right) for top, bottom in rows for left, right in columns]
    parts = []
    for example, (top, left, bottom, right) in zip(examples, places, strict=True):
        shape = bottom - top, right - left
        window = _filling(rng, _chosen(rng, example, choosers), example["image"].shape, shape, proportions)
        parts.append(_seen(rng, example, window, shape, flip, centers, min_visible))
    return _joined(parts, places, size)


def partners(rng: np.random.Generator, index: int, examples: int) -> list[int]:
    """Indices of the four images of a mosaic: ``index`` and three others; where there are fewer, some occur twice."""
    if examples < 4:
        return [index, *rng.integers(examples, size=3).tolist()]
    others = rng.choice(examples - 1, 3, replace=False)
    return [index, *(others + (others >= index)).tolist()]


def _chosen(rng: np.random.Generator, example: Example, choosers: Sequence[Chooser]) -> Window:
    height, width = example["image"].shape[:2]
    boxes = np.asarray(example.get("boxes", np.zeros((0, 4))), np.float64).reshape(-1, 4)
    boxes = boxes[np.asarray(example.get("box_mask", np.ones(len(boxes), bool)), bool)]
    window: Window = (0.0, 0.0, float(width), float(height))
    for choose in choosers:
        window = choose(rng, window, boxes)
    return window


def _seen(
    rng: np.random.Generator,
    example: Example,
    window: Window,
    shape: tuple[int, int],
    flip: float,
    centers: bool,
    min_visible: float,
) -> Example:
    height, width = example["image"].shape[:2]
    geometry = through(window, height, width, shape, bool(rng.random() < flip))
    if centers and "boxes" in example:
        kept = centered(np.reshape(example["boxes"], (-1, 4)), window) & np.asarray(example.get("box_mask", True), bool)
        example, min_visible = {**example, "box_mask": kept}, 0.0
    return transforms.apply(example, geometry, FILL, min_visible)


def _widened(window: Window) -> Window:
    """Smallest square around a window, with its center."""
    left, top, right, bottom = window
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half


def _filling(
    rng: np.random.Generator, window: Window, image: tuple[int, ...], shape: tuple[int, int], proportions: Proportions
) -> Window:
    """Largest part of a window, at a random place, which has the proportions of a quarter of ``shape``.

    Where they are lost, ``image`` of any shape is as if squeezed to a square first.
    """
    left, top, right, bottom = window
    unit = (image[1], image[0]) if proportions == "squeeze" else (1, 1)
    factor = min((right - left) / (shape[1] * unit[0]), (bottom - top) / (shape[0] * unit[1]))
    width, height = factor * shape[1] * unit[0], factor * shape[0] * unit[1]
    x, y = rng.uniform(left, max(left, right - width)), rng.uniform(top, max(top, bottom - height))
    return x, y, x + width, y + height


def _joined(parts: Sequence[Example], places: Sequence[tuple[int, int, int, int]], size: int) -> Example:
    """One example of quarters, which lie at ``places`` (top, left, bottom, right)."""
    joined, corners = dict(parts[0]), [(left, top, left, top) for top, left, _, _ in places]
    for name in ("image", "segmentation"):
        if name in joined:
            joined[name] = np.empty((size, size, *joined[name].shape[2:]), joined[name].dtype)
            for part, (top, left, bottom, right) in zip(parts, places, strict=True):
                joined[name][top:bottom, left:right] = part[name]
    for name in ("box_mask", *transforms.PER_BOX):
        if name in joined:
            joined[name] = np.concatenate([_laid(name, *each, size) for each in zip(parts, places, strict=True)])
    if "boxes" in joined:
        moved = joined["boxes"] + np.repeat(corners, [len(part["boxes"]) for part in parts], 0).astype(np.float32)
        joined["boxes"] = np.where(joined["box_mask"][:, None], moved, np.float32(0))
    return joined


def _laid(name: str, part: Example, place: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Field with a row for each box; masks are laid at their place in the whole."""
    top, left, bottom, right = place
    around = ((0, 0), (top, size - bottom), (left, size - right))
    return np.pad(part[name], around) if name == "instance_masks" else np.asarray(part[name])
