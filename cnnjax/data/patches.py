"""Pairs of a small image and the large one that it was made from, for super-resolution.

``image`` uint8 [h, w, c] is ``target`` uint8 [h · factor, w · factor, c] made smaller by Pillow's bicubic filter, as
MATLAB's ``imresize`` in the field's comparisons, to rounding.
"""

import numpy as np
from PIL import Image

from cnnjax.data.transforms import RandomTransform, Transform
from cnnjax.types import Example, UserError


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Image uint8 [h, w, 1 | 3], h and w multiples of ``factor``, made smaller by it."""
    height, width, channels = image.shape
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    small = pil.resize((width // factor, height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small).reshape(height // factor, width // factor, channels)


def _pair(target: np.ndarray, factor: int) -> Example:
    target = np.ascontiguousarray(target)
    return {"image": shrunk(target, factor), "target": target}


def _check(image: np.ndarray, side: int) -> None:
    if min(image.shape[:2]) < side:
        height, width = image.shape[:2]
        raise UserError(f"an image of {width}×{height} pixels has no part of {side}×{side}: take a smaller --patch")


def random_patch(size: int, factor: int) -> RandomTransform:
    """Random square of ``size · factor`` pixels, turned and mirrored at random; the small one has ``size``.

    Raises:
      UserError: the image is smaller.
    """
    side = size * factor

    def transform(rng: np.random.Generator, example: Example) -> Example:
        image = example["image"]
        _check(image, side)
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        part = np.rot90(image[top : top + side, left : left + side], int(rng.integers(4)))
        return _pair(part[:, ::-1] if rng.random() < 0.5 else part, factor)

    return transform


def central_patch(size: int, factor: int) -> Transform:
    """Central square of ``size · factor`` pixels; UserError as `random_patch`."""
    side = size * factor

    def transform(example: Example) -> Example:
        image = example["image"]
        _check(image, side)
        top, left = ((length - side) // 2 for length in image.shape[:2])
        return _pair(image[top : top + side, left : left + side], factor)

    return transform
