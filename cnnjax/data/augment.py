"""Augmentation on the device: an example becomes one of the same shapes, under ``jax.jit``.

A random operation samples a parameter for a deterministic operation, key first (the form of google-deepmind/dm_pix).
All are written for one example, a dict of arrays; `compose` chains random operations, `per_example` applies the chain
to a batch::

    one = compose(partial(random_affine, max_change=0.2), random_flip_left_right)
    augment = partial(per_example, one)  # (key, batch) → batch

Operations that move pixels move every field by its kind: ``image`` float [h, w, c] in 0…1 (bilinear); ``boxes`` [k, 4],
which are clipped; ``segmentation`` [h, w] and ``instance_masks`` [k, h, w] (nearest pixel). Operations on colors change
``image`` only. All other fields stay as they are. ``box_mask`` [k], True on real boxes (added where it is missing),
becomes False for a box of which less than ``min_visible`` of the area is left; the box is then zeros.

Every deterministic operation returns the image bit for bit at its neutral parameter. Anything but one float image
raises `TypeError`, an impossible range `ValueError`, other fields of wrong shapes `AssertionError`, all while tracing.
Pairs of examples are mixed by `mixing`, which takes a whole batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from cnnjax.data.transforms import MIN_VISIBLE, OUTSIDE
from cnnjax.ops import boxes as box_ops
from cnnjax.types import Array, Example, Key

Op = Callable[[Key, Example], Example]


def per_example(op: Op, key: Key, batch: Mapping[str, Array]) -> dict[str, jax.Array]:
    """Applies ``op`` to each example of a batch with a key of its own.

    Example i gets ``fold_in(key, i)``: its outcome depends on neither the batch size nor the number of devices.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(batch["image"])))
    return jax.vmap(lambda key, example: dict(op(key, example)))(keys, dict(batch))


def compose(*ops: Op) -> Op:
    """One operation that applies ``ops`` from left to right, each with a key of its own."""

    def composed(key: Key, example: Example) -> Example:
        example = {name: jnp.asarray(x) for name, x in example.items()}
        for i, op in enumerate(ops):
            example = op(jax.random.fold_in(key, i), example)
        return example

    return composed


# ---- geometry ----


def shift(
    example: Example, pixels: Array | tuple[int, int], fill: Array | float = 0.0, min_visible: float = MIN_VISIBLE
) -> Example:
    """Moves the content by whole pixels, ``(down, right)``; ``fill``, a scalar or [c], is the image in the gap."""
    image = _image(example)
    down, right = pixels[0], pixels[1]
    h, w, _ = image.shape
    rows, columns = jnp.arange(h) - down, jnp.arange(w) - right
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))[None, :]

    def taken(x: jax.Array, axis: int) -> jax.Array:
        return jnp.take(jnp.take(x, rows, axis=axis, mode="clip"), columns, axis=axis + 1, mode="clip")

    def boxes(before: jax.Array) -> jax.Array:
        return before + jnp.stack([right, down, right, down]).astype(jnp.float32)

    def planes(x: jax.Array, outside: Array) -> jax.Array:
        return jnp.where(inside, taken(x, x.ndim - 2), outside)

    moved = jnp.where(inside[..., None], taken(image, 0), jnp.asarray(fill, image.dtype))
    return _moved(example, moved, boxes, planes, min_visible)


def random_shift(key: Key, example: Example, max_pixels: int, **options: Any) -> Example:
    """`shift` by a whole number of pixels in −max_pixels…max_pixels, drawn for each direction."""
    return shift(example, jax.random.randint(key, (2,), -max_pixels, max_pixels + 1), **options)


def flip_left_right(example: Example, flip: Array | bool = True) -> Example:
    """Mirror image, column 0 becomes the last; the example unchanged where ``flip`` is False."""
    return _mirrored(example, flip, axis=1)


def flip_up_down(example: Example, flip: Array | bool = True) -> Example:
    """Mirror image, row 0 becomes the last; the example unchanged where ``flip`` is False."""
    return _mirrored(example, flip, axis=0)


def _mirrored(example: Example, flip: Array | bool, axis: int) -> Example:
    image = _image(example)

    def mirrored(boxes: jax.Array) -> jax.Array:
        return jnp.where(flip, box_ops.mirrored(boxes, image.shape[axis], axis), boxes)

    def planes(x: jax.Array, outside: Array) -> jax.Array:
        return jnp.where(flip, jnp.flip(x, axis=axis - 2), x)

    return _moved(example, jnp.where(flip, jnp.flip(image, axis=axis), image), mirrored, planes, 0.0)


def random_flip_left_right(key: Key, example: Example, probability: float = 0.5) -> Example:
    """`flip_left_right` with the given probability."""
    return flip_left_right(example, jax.random.bernoulli(key, probability))


def random_flip_up_down(key: Key, example: Example, probability: float = 0.5) -> Example:
    """`flip_up_down` with the given probability."""
    return flip_up_down(example, jax.random.bernoulli(key, probability))


def affine(example: Example, matrix: Array, fill: Array | float = 0.0, min_visible: float = MIN_VISIBLE) -> Example:
    """Bilinear resampling: output pixel (row, column) shows the input at ``matrix @ (row, column, 1)``.

    A rotated box becomes the upright box around it.

    Args:
      matrix: float [2, 3], from output to input, in pixels counted from the image's center ((h−1)/2, (w−1)/2); see
        `affine_matrix`.
      fill: scalar or [c], the value of every pixel outside the image. SciPy calls this ``mode="grid-constant"``.
        Shrinking does not low-pass the image first.
    """
    image, matrix = _image(example), jnp.asarray(matrix)
    chex.assert_shape(matrix, (2, 3))
    h, w, _ = image.shape
    row, column = (jnp.arange(h) - (h - 1) / 2)[:, None], (jnp.arange(w) - (w - 1) / 2)[None, :]
    # No matmul: accelerators run it in bfloat16 or TF32 by default, an error of whole pixels at 224.
    y = matrix[0, 0] * row + matrix[0, 1] * column + matrix[0, 2] + (h - 1) / 2
    x = matrix[1, 0] * row + matrix[1, 1] * column + matrix[1, 2] + (w - 1) / 2

    inside = jax.vmap(lambda plane: map_coordinates(plane, [y, x], order=1, mode="constant"), 2, 2)(image)
    # map_coordinates takes only a static constant. It is zero here, and the fill, one value per channel, is added
    # with the weight of the neighbors that lie outside.
    covered = jnp.clip(jnp.minimum(y + 1, h - y), 0, 1) * jnp.clip(jnp.minimum(x + 1, w - x), 0, 1)

    def nearest(planes: jax.Array, outside: Array) -> jax.Array:
        rows, columns = jnp.floor(y + 0.5).astype(int), jnp.floor(x + 0.5).astype(int)
        real = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        return jnp.where(real, planes[..., jnp.clip(rows, 0, h - 1), jnp.clip(columns, 0, w - 1)], outside)

    moved = (inside + jnp.asarray(fill) * (1 - covered)[..., None]).astype(image.dtype)
    boxes = partial(_affine_boxes, matrix=matrix.astype(jnp.float32), h=h, w=w)
    return _moved(example, moved, boxes, nearest, min_visible)


def _affine_boxes(boxes: jax.Array, matrix: jax.Array, h: int, w: int) -> jax.Array:
    (a, b), (c, d) = matrix[0, :2], matrix[1, :2]
    # The corners (row, column) from the center, moved by the inverse; no matmul, see `affine`.
    y = jnp.stack([boxes[:, i] for i in (1, 1, 3, 3)]) - h / 2 - matrix[0, 2]
    x = jnp.stack([boxes[:, i] for i in (0, 2, 0, 2)]) - w / 2 - matrix[1, 2]
    rows = (d * y - b * x) / (a * d - b * c) + h / 2
    columns = (a * x - c * y) / (a * d - b * c) + w / 2
    return jnp.stack([columns.min(0), rows.min(0), columns.max(0), rows.max(0)], axis=1)


def affine_matrix(
    degrees: Array | float = 0.0, zoom: Array | float = 1.0, offset: Array | tuple[float, float] = (0.0, 0.0)
) -> jax.Array:
    """Matrix [2, 3] for `affine` that zooms, then rotates about the center, then moves the content.

    Args:
      degrees: positive turns the content counter-clockwise.
      zoom: above 1 enlarges the content.
      offset: pixels ``(down, right)``, fractions allowed.
    """
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    down, right = offset[0], offset[1]
    rows = [cos, sin, -cos * down - sin * right], [-sin, cos, sin * down - cos * right]
    return jnp.stack([jnp.stack(row) for row in rows])


def rotate(example: Example, degrees: Array | float, **options: Any) -> Example:
    """Turns the content about the center, counter-clockwise; ``options`` are `affine`'s."""
    return affine(example, affine_matrix(degrees=degrees), **options)


def zoom(example: Example, factor: Array | float, **options: Any) -> Example:
    """Enlarges the content about the center by ``factor`` (below 1 shrinks it); ``options`` are `affine`'s."""
    return affine(example, affine_matrix(zoom=factor), **options)


def translate(example: Example, offset: Array | tuple[float, float], **options: Any) -> Example:
    """Moves the content by ``(down, right)`` pixels, fractions allowed (`shift` is faster); see `affine`."""
    return affine(example, affine_matrix(offset=offset), **options)


def random_rotate(key: Key, example: Example, max_degrees: float, **options: Any) -> Example:
    """`rotate` by an angle uniform in −max_degrees…max_degrees."""
    return random_affine(key, example, max_degrees=max_degrees, **options)


def random_zoom(key: Key, example: Example, max_change: float, **options: Any) -> Example:
    """`zoom` by a factor uniform in 1 − max_change … 1 + max_change."""
    return random_affine(key, example, max_change=max_change, **options)


def random_translate(key: Key, example: Example, max_pixels: float, **options: Any) -> Example:
    """`translate` by an offset uniform in −max_pixels…max_pixels, drawn for each direction."""
    return random_affine(key, example, max_pixels=max_pixels, **options)


def random_affine(
    key: Key,
    example: Example,
    max_degrees: float = 0.0,
    max_change: float = 0.0,
    max_pixels: float = 0.0,
    **options: Any,
) -> Example:
    """Random rotation, zoom and translation with one resampling: faster and sharper than three.

    The units are those of `random_rotate`, `random_zoom` and `random_translate`; ``options`` are `affine`'s.
    """
    for_angle, for_zoom, for_offset = jax.random.split(key, 3)
    degrees = jax.random.uniform(for_angle, (), minval=-max_degrees, maxval=max_degrees)
    offset = jax.random.uniform(for_offset, (2,), minval=-max_pixels, maxval=max_pixels)
    return affine(example, affine_matrix(degrees, _factor(for_zoom, max_change), offset), **options)


def _moved(
    example: Example,
    image: jax.Array,
    boxes: Callable[[jax.Array], jax.Array],
    planes: Callable[[jax.Array, Array], jax.Array],
    min_visible: float,
) -> Example:
    """Example with the new ``image``; ``boxes`` and ``planes`` (given the value outside) move its other fields."""
    h, w, _ = image.shape
    moved = {**example, "image": image}
    for name, outside in OUTSIDE.items():
        if name in example:
            chex.assert_shape(example[name], (h, w) if name == "segmentation" else (None, h, w))
            values = jnp.asarray(example[name])
            moved[name] = planes(values, jnp.asarray(outside, values.dtype))
    if "boxes" in example:
        before = jnp.asarray(example["boxes"])
        mask = jnp.asarray(example.get("box_mask", jnp.ones(len(before), bool)), bool)
        chex.assert_shape(before, (len(mask), 4))
        after = boxes(before)
        share = box_ops.visible(after, h, w)
        mask = mask & (share > 0) & (share >= min_visible)
        moved |= {"boxes": jnp.where(mask[:, None], box_ops.clip(after, h, w), 0), "box_mask": mask}
    return moved


# ---- color ----


def brightness(example: Example, factor: Array | float) -> Example:
    """``image × factor`` clipped to 0…1, as ``PIL.ImageEnhance.Brightness``: 0 is black, 1 the image."""
    image = _image(example)
    return {**example, "image": jnp.clip(image * jnp.asarray(factor, image.dtype), 0.0, 1.0)}


def random_brightness(key: Key, example: Example, max_change: float) -> Example:
    """`brightness` by a factor uniform in 1 − max_change … 1 + max_change."""
    return brightness(example, _factor(key, max_change))


def contrast(example: Example, factor: Array | float) -> Example:
    """Scales the distance from the mean gray, clipped to 0…1, as ``PIL.ImageEnhance.Contrast``: 1 is the image.

    The gray of an RGB image is its luma (ITU-R BT.601), as in PIL; that of another number of channels is their mean.
    """
    image = _image(example)
    factor = jnp.asarray(factor, image.dtype)
    luma = jnp.array([0.299, 0.587, 0.114], image.dtype)
    gray = jnp.sum(image * luma, axis=-1) if image.shape[-1] == 3 else image
    # Not gray + factor × (image − gray), which rounds: factor 1 must return the image exactly.
    return {**example, "image": jnp.clip(factor * image + (1 - factor) * jnp.mean(gray), 0.0, 1.0)}


def random_contrast(key: Key, example: Example, max_change: float) -> Example:
    """`contrast` by a factor uniform in 1 − max_change … 1 + max_change."""
    return contrast(example, _factor(key, max_change))


def cutout(example: Example, corner: Array | tuple[int, int], side: int, fill: Array | float = 0.0) -> Example:
    """Fills a square of ``side`` pixels whose top left pixel is ``corner`` (row, column), perhaps outside the image.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout", section 3.2.
    """
    image = _image(example)
    rows, columns = jnp.arange(image.shape[0]) - corner[0], jnp.arange(image.shape[1]) - corner[1]
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None, :]
    return {**example, "image": jnp.where(inside[..., None], jnp.asarray(fill, image.dtype), image)}


def random_cutout(key: Key, example: Example, side: int, fill: Array | float = 0.0) -> Example:
    """`cutout` of a square whose center is drawn among the image's pixels."""
    center = jax.random.randint(key, (2,), 0, jnp.array(_image(example).shape[:2]))
    return cutout(example, center - side // 2, side, fill)


def _image(example: Example) -> jax.Array:
    image = jnp.asarray(example["image"])
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"expected one image, float [h, w, c], got {image.dtype} {list(image.shape)}")
    return image


def _factor(key: Key, max_change: float) -> jax.Array:
    if not 0 <= max_change < 1:
        raise ValueError(f"max_change must be in 0…1, 1 excluded, got {max_change}")
    return jax.random.uniform(key, (), minval=1 - max_change, maxval=1 + max_change)
