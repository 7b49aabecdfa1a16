"""Host transforms of examples: a `Geometry` is chosen once and moves all fields.

    train = pipeline.loader(source, random_resized_crop(224), random_flip_left_right())  # (generator, index) → example
    valid = sources.Mapped(source, resize_and_crop(256, 224))
    resize_and_crop(256, 224).restore(boxes, height, width)   # boxes found in the output, in pixels of the source

A field moves by its kind: ``image`` uint8 [h, w, 1 | 3] is resampled by PIL; ``boxes`` [k, 4] move with the pixels and
are clipped; ``segmentation`` [h, w] and ``instance_masks`` [k, h, w] take the nearest pixel. All others stay as they
are. ``box_mask`` (added where it is missing) becomes False for a box of which less than ``min_visible`` of the area is
left, and for one without area; that box becomes zeros and its row stays, so that labels keep their places.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cnnjax.data import preparation
from cnnjax.data.preparation import Fit, Geometry, Resample, Window
from cnnjax.types import IGNORED, Example, UserError

Transform = Callable[[Example], Example]
RandomTransform = Callable[[np.random.Generator, Example], Example]

MIN_VISIBLE = 0.25  # with less of it visible an object can hardly be recognized, and its box is a guess
OUTSIDE = {"segmentation": IGNORED, "instance_masks": 0}  # field → value outside the image
PER_BOX = ("boxes", "labels", "ignore", "crowd", "difficult", "instance_masks")  # fields with a row for each box


def apply(example: Example, geometry: Geometry, fill: int = 128, min_visible: float = MIN_VISIBLE) -> Example:
    """Moves every field of an example; ``fill`` is the value of pixels from outside the image."""
    moved = {**example, "image": preparation.moved(example["image"], geometry, fill)}
    for name, outside in OUTSIDE.items():
        if name in example:
            moved[name] = _nearest(example[name], geometry, outside)
    if "boxes" in example:
        boxes, keep = _boxes(example["boxes"], example["image"].shape, geometry, min_visible)
        mask = keep & np.asarray(example.get("box_mask", True), bool)
        moved |= {"boxes": np.where(mask[:, None], boxes, np.float32(0)), "box_mask": mask}
    return moved


def _nearest(planes: np.ndarray, geometry: Geometry, outside: int) -> np.ndarray:
    """Planes [..., h, w] of the source → those of the output, each pixel from the one in which its center lies."""
    height, width = planes.shape[-2:]
    scale, offset = geometry.coordinates(height, width)
    centers = zip(geometry.shape[::-1], offset, scale, strict=True)
    x, y = ((np.arange(size) + 0.5 - first) / factor for size, first, factor in centers)
    x = x[::-1] if geometry.flip else x
    left, top, right, bottom = geometry.window or (0, 0, width, height)
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    taken = planes[..., y.astype(int).clip(0, height - 1)[:, None], x.astype(int).clip(0, width - 1)]
    return np.where(inside, taken, np.asarray(outside, planes.dtype))


def _boxes(boxes: np.ndarray, shape: tuple[int, ...], geometry: Geometry, min_visible: float) -> tuple:
    """Moved and clipped boxes, float32 [k, 4], of an image of ``shape``, and a mask of the visible ones, bool [k]."""
    scale, offset = geometry.coordinates(*shape[:2])
    moved = np.asarray(boxes, np.float32).reshape(-1, 4) * np.tile(scale, 2).astype(np.float32)
    moved = moved + np.tile(offset, 2).astype(np.float32)
    if geometry.flip:
        moved = _mirrored(moved, geometry.shape[1])
    clipped = moved.clip(0, np.array([*geometry.shape[::-1]] * 2, np.float32))
    left = _area(clipped)
    return clipped, (left > 0) & (left >= min_visible * _area(moved))


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)


# ---- deterministic ----


@dataclass(frozen=True)
class Geometric:
    """Transform whose geometry depends only on the size of the image."""

    geometry: Callable[[int, int], Geometry]  # (height, width) of an image → where its pixels go
    fill: int = 128  # value of pixels from outside the image
    min_visible: float = MIN_VISIBLE  # see the module

    def __call__(self, example: Example) -> Example:
        return apply(example, self.geometry(*example["image"].shape[:2]), self.fill, self.min_visible)

    def restore(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes [k, 4] in the output → float32 [k, 4] in the source image of this size, clipped to it."""
        geometry = self.geometry(height, width)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        scale, offset = (np.tile(xy, 2) for xy in geometry.coordinates(height, width))
        boxes = _mirrored(boxes, geometry.shape[1]) if geometry.flip else boxes
        return ((boxes - offset) / scale).clip(0, [width, height] * 2).astype(np.float32)

    def restore_plane(self, plane: np.ndarray, height: int, width: int) -> np.ndarray:
        """Plane [h, w] of the output, such as classes of pixels → [height, width] of the source, by the nearest pixel.

        What the output does not show takes the pixel at its border.
        """
        geometry = self.geometry(height, width)
        plane = plane[:, ::-1] if geometry.flip else plane
        scale, offset = geometry.coordinates(height, width)
        x, y = (
            np.floor((np.arange(size) + 0.5) * factor + first).astype(int)
            for size, factor, first in zip((width, height), scale, offset, strict=True)
        )
        return plane[y.clip(0, plane.shape[0] - 1)[:, None], x.clip(0, plane.shape[1] - 1)]


def fitted(fit: Fit, size: int | tuple[int, int], resize: int, resample: Resample = "bilinear") -> Geometric:
    """Makes the image a square of ``size`` pixels, or with pad of ``size`` (height, width); see `preparation.geometry`.

    Raises:
      UserError: with crop, ``size`` is larger than ``resize``.
    """
    if fit == "crop" and isinstance(size, int) and size > resize:
        raise UserError(f"no square of {size} pixels can be cut where the shorter side has {resize}")
    geometry = partial(preparation.geometry, fit, size, resize, resample)
    return Geometric(geometry, min_visible=0.0 if fit in ("squeeze", "pad") else MIN_VISIBLE)


def squeeze(size: int, resample: Resample = "bilinear") -> Geometric:
    """Resizes the whole image to ``size`` × ``size``; its proportions are lost (the chapter's way)."""
    return fitted("squeeze", size, size, resample)


def resize_and_crop(resize: int, size: int, resample: Resample = "bilinear") -> Geometric:
    """Resizes the shorter side to ``resize``, then cuts the central square: torchvision's Resize and CenterCrop.

    Raises:
      UserError: ``size`` is larger than ``resize``.
    """
    return fitted("crop", size, resize, resample)


def crop_and_resize(size: int, resample: Resample = "bilinear") -> Geometric:
    """Resizes the largest central square to ``size`` × ``size``: Keras' ``load_img(keep_aspect_ratio=True)``."""
    return fitted("square", size, size, resample)


def center_crop(size: int) -> Geometric:
    """Resizes the shorter side to ``size`` (bilinear, proportions kept), then cuts the central square."""
    return fitted("center", size, size)


def letterbox(size: int, fill: int = 128) -> Geometric:
    """Puts the whole image, proportions kept, into the middle of a square of ``size`` pixels of ``fill``; bilinear."""

    def geometry(height: int, width: int) -> Geometry:
        factor = size / max(height, width)
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
        return Geometry((height, width), (size, size), ((size - height) // 2, (size - width) // 2))

    return Geometric(geometry, fill, min_visible=0.0)


def pad(height: int, width: int, fill: int = 128) -> Geometric:
    """Pads the image with ``fill`` below and to the right to ``height`` × ``width``; UserError where it is larger."""

    def geometry(rows: int, columns: int) -> Geometry:
        if rows > height or columns > width:
            raise UserError(f"{rows}×{columns} pixels (height × width) cannot be padded to {height}×{width}: resize")
        return Geometry((rows, columns), (height, width))

    return Geometric(geometry, fill, min_visible=0.0)


def crop(window: Window, height: int, width: int, min_visible: float = MIN_VISIBLE) -> Geometric:
    """Resizes ``window`` to ``height`` × ``width``, bilinear; UserError where it is empty or leaves the image."""
    left, top, right, bottom = window

    def geometry(rows: int, columns: int) -> Geometry:
        if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
            raise UserError(
                f"the window {window} (left, top, right, bottom) is not inside an image of {columns}×{rows} pixels "
                "(width × height)"
            )
        return Geometry((height, width), (height, width), window=window)

    return Geometric(geometry, min_visible=min_visible)


def flip_left_right() -> Geometric:
    """Mirror image: column 0 becomes the last."""
    return Geometric(partial(_same_size, True), min_visible=0.0)


def _same_size(flip: bool, height: int, width: int) -> Geometry:
    return Geometry((height, width), (height, width), flip=flip)


def pad_boxes(example: Example, most: int, *, cut: bool = False) -> Example:
    """Example with exactly ``most`` rows in each field of `PER_BOX`: those with ``box_mask`` True, then zeros.

    Args:
      most: rows; `targets.room` finds how many are needed.
      cut: leave out the smallest boxes where there are more, of which the user has been told.

    Raises:
      UserError: there are more than ``most``, unless they are cut.
    """
    real = np.flatnonzero(example.get("box_mask", np.ones(len(example["boxes"]), bool)))
    if len(real) > most and not cut:
        raise UserError(f"an image has {len(real)} boxes, room is for {most}: make more")
    largest = np.argsort(-_area(np.asarray(example["boxes"])[real]), kind="stable")
    real = real[np.sort(largest[:most])]
    padded = {**example, "box_mask": np.arange(most) < len(real)}
    for name in PER_BOX:
        if name in example:
            rows = np.asarray(example[name])[real]
            padded[name] = np.concatenate([rows, np.zeros((most - len(real), *rows.shape[1:]), rows.dtype)])
    return padded


def chain(*transforms: Transform) -> Transform:
    """Transform that applies ``transforms``, all deterministic, from left to right."""

    def chained(example: Example) -> Example:
        for each in transforms:
            example = each(example)
        return example

    return chained


# ---- random ----


def compose(*transforms: Transform | RandomTransform) -> RandomTransform:
    """Random transform that applies ``transforms`` from left to right, all random ones with one generator.

    A transform with one argument without a default is deterministic; one with two takes the generator first.
    """
    steps = [_with_generator(each) for each in transforms]

    def composed(rng: np.random.Generator, example: Example) -> Example:
        for each in steps:
            example = each(rng, example)
        return example

    return composed


def _with_generator(transform: Any) -> RandomTransform:
    parameters = inspect.signature(transform).parameters.values()
    positional = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return transform if len(positional) == 2 else lambda rng, example: transform(example)


def random_window(
    rng: np.random.Generator,
    height: int,
    width: int,
    share: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Window:
    """Draws a window of whole pixels in an image (Szegedy et al. 2015, section 6).

    Args:
      share: limits of the window's share of the image's area, which is uniform between them.
      ratio: limits of width / height, whose logarithm is uniform between them. Where ten draws do not fit, the result
        is the largest central window with the nearest ratio that does.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = max(1, round(np.sqrt(area * aspect))), max(1, round(np.sqrt(area / aspect)))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = np.clip(width / height, *ratio)
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    size: int,
    share: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    min_visible: float = MIN_VISIBLE,
) -> RandomTransform:
    """Resizes a `random_window` to ``size`` × ``size``, bilinear."""

    def transform(rng: np.random.Generator, example: Example) -> Example:
        height, width = example["image"].shape[:2]
        window = random_window(rng, height, width, share, ratio)
        return apply(example, Geometry((size, size), (size, size), window=window), min_visible=min_visible)

    return transform


def random_flip_left_right(probability: float = 0.5) -> RandomTransform:
    """`flip_left_right` with the given probability."""
    chosen = {flip: Geometric(partial(_same_size, flip), min_visible=0.0) for flip in (False, True)}
    return lambda rng, example: chosen[bool(rng.random() < probability)](example)
