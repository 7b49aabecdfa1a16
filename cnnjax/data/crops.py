"""Crops of pictures to train a network on that will slide over pictures: an object in the middle, or none."""

from collections.abc import Iterator

import jax
import numpy as np

from cnnjax.data.sources import Arrays
from cnnjax.ops.sliding import Level, Windows
from cnnjax.types import Array

FITS = (0.45, 0.72)  # longer side of a box, as a share of the window, in which it is this window's to find
DOUBTFUL = 1.15  # factor beyond these at which a box in the middle is neither right nor wrong to find
NEAR = 0.75  # greatest distance from the window's center to the box's, in strides, in either direction
EACH = 3  # crops on, and beside, each object, and anywhere, at each scale of a picture


def cut(pictures: Arrays, windows: Windows, seed: int) -> Arrays:
    """Crops of pictures with ``boxes``, ``labels`` and ``box_mask``, at each scale of ``windows``.

    Some lie on each object that fits a window of that scale, up to `NEAR` from its middle: these are the object's.
    Others lie on strangers, beside objects and strangers, and anywhere, and have none. A crop is left out that shows an
    object of nearly the right size nearly in its middle.

    Args:
      pictures: with ``strangers`` [n, k, 4], see ``canvases.compose``: boxes of what must not be taken for an object.
      seed: with the same one they are the same, bit for bit.

    Returns:
      ``image`` uint8 [m, side, side, c], and with one row for each: ``boxes`` float32 [m, 1, 4], xyxy in the crop,
      ``labels`` int32 [m, 1], ``box_mask`` bool [m, 1], False where there is no object.
    """
    rng = np.random.default_rng(seed)
    levels = jax.device_get(jax.jit(windows.levels)(pictures.fields["image"]))
    found = [
        crop
        for i in range(len(pictures))
        for level in levels
        for crop in _of_level(rng, level, i, {name: x[i] for name, x in pictures.fields.items()}, windows)
    ]
    images, boxes, labels, present = zip(*found, strict=True)
    fields: dict[str, np.ndarray] = {
        "image": np.stack(images).astype(np.uint8),
        "boxes": np.array(boxes, np.float32)[:, None],
        "labels": np.array(labels, np.int32)[:, None],
        "box_mask": np.array(present, bool)[:, None],
    }
    return Arrays(fields, pictures.classes)


def _of_level(
    rng: np.random.Generator, level: Level, index: int, fields: dict[str, np.ndarray], windows: Windows
) -> Iterator[tuple[Array, np.ndarray, int, bool]]:
    """Crops of one picture at one scale: pixels, box, label, and whether there is an object."""
    side, near = windows.side, NEAR * windows.stride
    boxes = fields["boxes"][fields["box_mask"]] * level.factors + level.margin
    labels = fields["labels"][fields["box_mask"]]
    centers, share = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(-1) / side
    fits = (share >= FITS[0]) & (share <= FITS[1])
    strangers = fields["strangers"][fields["strangers"][:, 2] > 0] * level.factors + level.margin
    others = np.concatenate([centers, (strangers[:, :2] + strangers[:, 2:]) / 2])
    doubtful = (share >= FITS[0] / DOUBTFUL) & (share <= FITS[1] * DOUBTFUL)
    height, width = level.images.shape[1:3]
    middles = np.repeat(np.concatenate([centers[fits], others[len(centers) :]]), EACH, 0)
    on = middles + rng.uniform(-near, near, middles.shape)
    beside = np.repeat(others, EACH, 0) + rng.uniform(-side / 2, side / 2, (EACH * len(others), 2))
    anywhere = rng.uniform(side / 2, [width - side / 2, height - side / 2], (EACH, 2))
    for left, top in np.round(np.concatenate([on, beside, anywhere]) - side / 2).astype(int):
        if not (0 <= left <= width - side and 0 <= top <= height - side):
            continue
        distance = np.abs(centers - [left + side / 2, top + side / 2]).max(-1)
        hit = fits & (distance <= near + 0.5)  # whole pixels
        pixels = level.images[index, top : top + side, left : left + side]
        if hit.any():
            nearest = np.where(hit, distance, np.inf).argmin()
            yield pixels, boxes[nearest] - [left, top, left, top], labels[nearest], True
        elif not (doubtful & (distance < 2 * near)).any():
            yield pixels, np.zeros(4), 0, False
