"""Augmentation on the device of an image and its boxes, under ``jax.jit`` and ``jax.vmap``; see `augment`.

An operation takes and gives ``image`` float [h, w, c], ``boxes`` float [k, 4], xyxy in pixels, and ``mask`` bool [k],
True on real boxes. Boxes move with the pixels and are clipped to the image; the mask falls for a box of which less than
``min_visible`` of its area is left, and where it has fallen the box is zeros. A random operation takes its key first::

    one = compose(partial(random_affine, max_change=0.2), random_flip_left_right, on_image(brighter))
    augment = partial(per_example, one)  # (key, images [n, h, w, c], boxes [n, k, 4], masks [n, k]) → the same shapes
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnnjax.data import augment
from cnnjax.ops import boxes as ops
from cnnjax.types import Array, Key

Example = tuple[jax.Array, jax.Array, jax.Array]  # image [h, w, c], boxes [k, 4], mask [k]
Op = Callable[[Key, Array, Array, Array], Example]

MIN_VISIBLE = 0.25  # as on the host, see `box_host`


def per_example(op: Op, key: Key, images: Array, boxes: Array, masks: Array) -> Example:
    """Applies ``op`` to each example of a batch with a key of its own, as `augment.per_example`."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(op)(keys, images, boxes, masks)


def compose(*ops: Op) -> Op:
    """One operation that applies ``ops`` from left to right, each with a key of its own."""

    def composed(key: Key, image: Array, boxes: Array, mask: Array) -> Example:
        example = jnp.asarray(image), jnp.asarray(boxes), jnp.asarray(mask)
        for i, op in enumerate(ops):
            example = op(jax.random.fold_in(key, i), *example)
        return example

    return composed


def on_image(op: augment.Op) -> Op:
    """An operation of `augment` that leaves the pixels where they are, such as ``random_brightness``."""
    return lambda key, image, boxes, mask: (op(key, image), jnp.asarray(boxes), jnp.asarray(mask))


def flip_left_right(image: Array, boxes: Array, mask: Array) -> Example:
    """The mirror image: column 0 becomes the last."""
    width, boxes = image.shape[1], jnp.asarray(boxes)
    mirrored = jnp.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return augment.flip_left_right(image), *_kept(mirrored, mask, image, 0.0)


def random_flip_left_right(key: Key, image: Array, boxes: Array, mask: Array, probability: float = 0.5) -> Example:
    """`flip_left_right` with the given probability."""
    flip = jax.random.bernoulli(key, probability)
    same = jnp.asarray(image), *_kept(boxes, mask, image, 0.0)
    return jax.tree.map(lambda a, b: jnp.where(flip, a, b), flip_left_right(image, boxes, mask), same)


def shift(
    image: Array,
    boxes: Array,
    mask: Array,
    pixels: Array | tuple[int, int],
    fill: Array | float = 0.0,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """Moves the content by whole pixels, ``(down, right)``; ``fill``, a scalar or [c], takes the gap."""
    down, right = pixels[0], pixels[1]
    moved = boxes + jnp.stack([right, down, right, down]).astype(jnp.float32)
    return augment.shift(image, pixels, fill), *_kept(moved, mask, image, min_visible)


def random_shift(
    key: Key,
    image: Array,
    boxes: Array,
    mask: Array,
    max_pixels: int,
    fill: Array | float = 0.0,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """`shift` by a whole number of pixels in −max_pixels…max_pixels, drawn for each direction."""
    pixels = jax.random.randint(key, (2,), -max_pixels, max_pixels + 1)
    return shift(image, boxes, mask, pixels, fill, min_visible)


def affine(
    image: Array,
    boxes: Array,
    mask: Array,
    matrix: Array,
    fill: Array | float = 0.0,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """`augment.affine`, whose matrix [2, 3] leads from output to input; a turned box becomes the upright one around."""
    h, w = image.shape[:2]
    matrix = jnp.asarray(matrix, jnp.float32)
    (a, b), (c, d) = matrix[0, :2], matrix[1, :2]
    # The corners (row, column) from the centre, moved by the inverse; no matmul, see `augment.affine`.
    y = jnp.stack([boxes[:, i] for i in (1, 1, 3, 3)]) - h / 2 - matrix[0, 2]
    x = jnp.stack([boxes[:, i] for i in (0, 2, 0, 2)]) - w / 2 - matrix[1, 2]
    rows = (d * y - b * x) / (a * d - b * c) + h / 2
    columns = (a * x - c * y) / (a * d - b * c) + w / 2
    moved = jnp.stack([columns.min(0), rows.min(0), columns.max(0), rows.max(0)], axis=1)
    return augment.affine(image, matrix, fill), *_kept(moved, mask, image, min_visible)


def zoom(
    image: Array,
    boxes: Array,
    mask: Array,
    factor: Array | float,
    fill: Array | float = 0.0,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """Enlarges the content about the centre by ``factor`` (below 1 shrinks it), bilinear."""
    return affine(image, boxes, mask, augment.affine_matrix(zoom=factor), fill, min_visible)


def random_affine(
    key: Key,
    image: Array,
    boxes: Array,
    mask: Array,
    max_degrees: float = 0.0,
    max_change: float = 0.0,
    max_pixels: float = 0.0,
    fill: Array | float = 0.0,
    min_visible: float = MIN_VISIBLE,
) -> Example:
    """`affine` with a random rotation, zoom and translation.

    Args:
        max_degrees: the angle is uniform in −max_degrees…max_degrees.
        max_change: the zoom is uniform in 1 − max_change … 1 + max_change.
        max_pixels: the offset is uniform in −max_pixels…max_pixels, drawn for each direction.
    """
    if not 0 <= max_change < 1:
        raise ValueError(f"max_change must be in 0…1, 1 excluded, got {max_change}")
    for_angle, for_zoom, for_offset = jax.random.split(key, 3)
    degrees = jax.random.uniform(for_angle, (), minval=-max_degrees, maxval=max_degrees)
    factor = jax.random.uniform(for_zoom, (), minval=1 - max_change, maxval=1 + max_change)
    offset = jax.random.uniform(for_offset, (2,), minval=-max_pixels, maxval=max_pixels)
    return affine(image, boxes, mask, augment.affine_matrix(degrees, factor, offset), fill, min_visible)


def _kept(boxes: Array, mask: Array, image: Array, min_visible: float) -> tuple[jax.Array, jax.Array]:
    h, w = image.shape[:2]
    share = ops.visible(boxes, h, w)
    mask = jnp.asarray(mask, bool) & (share > 0) & (share >= min_visible)
    return jnp.where(mask[:, None], ops.clip(boxes, h, w), 0), mask
