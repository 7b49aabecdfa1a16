"""Pictures with several objects whose boxes are known, composed of small images such as scanned digits."""

import numpy as np
from PIL import Image

from cnnjax.data.sources import Arrays
from cnnjax.types import UserError

INK = 64  # value from which a pixel belongs to an object
_TRIES = 100  # places that are tried for an image before it is left out


def compose(
    source: Arrays,
    classes: int,
    count: int,
    seed: int,
    *,
    side: int = 160,
    sizes: tuple[int, int] = (15, 42),
    objects: int = 5,
    strangers: int = 3,
) -> Arrays:
    """Canvases on which images of ``source`` lie apart from each other, each resized at random, over dark noise.

    Args:
      source: bright images on black, uint8 [n, h, w, 1], of which each canvas takes some at random.
      classes: the first so many classes are objects, the others are strangers: they lie there too and have no box.
      count: number of canvases.
      seed: with the same one they are the same, bit for bit.
      side: height and width of a canvas in pixels.
      sizes: least and greatest height of an image on it, in pixels; their logarithm is uniform.
      objects, strangers: greatest numbers on a canvas; at least one object is put on each.

    Returns:
      ``image`` uint8 [count, side, side, 1]; ``boxes`` float32 [count, objects, 4], xyxy around what is brighter than
      `INK`; ``labels`` int32 and ``box_mask`` bool [count, objects]; ``strangers`` float32 [count, strangers, 4], their
      boxes, without area where there are fewer.

    Raises:
      UserError: the source has no image of an object or of a stranger, or the canvas is too small for one.
    """
    if side < sizes[1]:
        raise UserError(f"a canvas of {side} pixels has no room for images of up to {sizes[1]}: make it larger")
    labels = source.fields["label"]
    known, unknown = np.flatnonzero(labels < classes), np.flatnonzero(labels >= classes)
    if not len(known) or (strangers and not len(unknown)):
        raise UserError(f"expected images of the first {classes} classes and of others, got {source.classes}")
    rng = np.random.default_rng(seed)
    fields = {
        "image": rng.integers(0, INK // 2, (count, side, side, 1), np.uint8),
        "boxes": np.zeros((count, objects, 4), np.float32),
        "labels": np.zeros((count, objects), np.int32),
        "box_mask": np.zeros((count, objects), bool),
        "strangers": np.zeros((count, strangers, 4), np.float32),
    }
    for i in range(count):
        chosen = [*rng.choice(known, rng.integers(1, objects + 1)), *rng.choice(unknown, rng.integers(strangers + 1))]
        taken: list[tuple[int, int, int]] = []
        for index in chosen:
            size = round(float(np.exp(rng.uniform(*np.log(sizes)))))
            place = _free(rng, taken, size, side)
            if place is None:
                continue
            taken.append((*place, size))
            box = _paste(fields["image"][i, ..., 0], source.fields["image"][index, ..., 0], *place, size)
            if labels[index] < classes:
                row = int(fields["box_mask"][i].sum())
                fields["boxes"][i, row], fields["labels"][i, row] = box, labels[index]
                fields["box_mask"][i, row] = True
            else:
                fields["strangers"][i, (fields["strangers"][i, :, 2] > 0).sum()] = box
    return Arrays(fields, tuple(source.classes[:classes]))


def _free(rng: np.random.Generator, taken: list[tuple[int, int, int]], size: int, side: int) -> tuple[int, int] | None:
    """Top and left of a square that overlaps none of ``taken`` (top, left, size); None where no try has found one."""
    for top, left in rng.integers(0, side - size + 1, (_TRIES, 2)).tolist():
        if all(top >= t + s or t >= top + size or left >= x + s or x >= left + size for t, x, s in taken):
            return top, left
    return None


def _paste(canvas: np.ndarray, image: np.ndarray, top: int, left: int, size: int) -> tuple[int, int, int, int]:
    """Puts an image on a canvas, where it is brighter, and returns the box of its ink."""
    pixels = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    target = canvas[top : top + size, left : left + size]
    target[:] = np.maximum(target, pixels)
    rows, columns = np.flatnonzero((pixels >= INK).any(1)), np.flatnonzero((pixels >= INK).any(0))
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
