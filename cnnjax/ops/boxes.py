"""Boxes: ``float [..., 4]``, ``(x_min, y_min, x_max, y_max)`` in pixels, the left edge of column x at x.

Other formats stand in the names of functions: ``cxcywh`` is center, width, height; ``xywh`` upper left corner, width,
height. Every function can be differentiated everywhere. A box with x_max ≤ x_min or y_max ≤ y_min has area 0; a ratio
0/0 is 0, and so is its gradient. Integers and half precision are computed in float32, which holds the area of any
image.
"""

import chex
import jax
import jax.numpy as jnp

from cnnjax.types import Array

_LEAST_AREA = 1e-12  # the gradient of a quotient divides by the area's square, which underflows in float32 below this


def area(boxes: Array) -> jax.Array:
    """Areas [...] of boxes [..., 4]."""
    boxes = _floats(boxes)
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Array, b: Array) -> jax.Array:
    """Intersection over union of every box of a with every box of b: [n, 4], [m, 4] → [n, m] in 0…1 (Jaccard 1912)."""
    chex.assert_rank([a, b], 2)
    return iou_paired(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


def giou(a: Array, b: Array) -> jax.Array:
    """Generalized IoU of every box of a with every box of b: [n, 4], [m, 4] → [n, m] in −1…1, see `giou_paired`."""
    chex.assert_rank([a, b], 2)
    return giou_paired(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


def iou_paired(a: Array, b: Array) -> jax.Array:
    """Intersection over union of pairs of boxes: [..., 4], [..., 4] → [...]; leading axes broadcast."""
    intersection, union = _intersection_and_union(a, b)
    return _ratio(intersection, union)


def giou_paired(a: Array, b: Array) -> jax.Array:
    """Generalized IoU of pairs of boxes (Rezatofighi et al. 2019, Algorithm 1).

    The IoU minus the share that neither box covers of the smallest box around both. Unlike the IoU it has a gradient
    where the boxes do not overlap. As a loss: ``1 - giou_paired(a, b)``.

    Args:
        a: [..., 4].
        b: [..., 4]; leading axes broadcast.

    Returns:
        [...] in −1…1.
    """
    intersection, union = _intersection_and_union(a, b)
    a, b = _floats(a), _floats(b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip(boxes: Array, height: Array | int, width: Array | int) -> jax.Array:
    """Boxes [..., 4] cut to an image; a box outside of it becomes an empty one on the border."""
    boxes = _floats(boxes)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).astype(boxes.dtype))


def visible(boxes: Array, height: Array | int, width: Array | int) -> jax.Array:
    """Share [...] of each box's area that lies inside an image, for boxes [..., 4]; 0 for a box without area."""
    return _ratio(area(clip(boxes, height, width)), area(boxes))


def xyxy_to_cxcywh(boxes: Array) -> jax.Array:
    """Converts corners to center, width, height: [..., 4] → [..., 4]."""
    low, high = _corners(boxes)
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def cxcywh_to_xyxy(boxes: Array) -> jax.Array:
    """Converts center, width, height to corners: [..., 4] → [..., 4]."""
    center, size = _corners(boxes)
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_xywh(boxes: Array) -> jax.Array:
    """Converts corners to upper left corner, width, height, COCO's format: [..., 4] → [..., 4]."""
    low, high = _corners(boxes)
    return jnp.concatenate([low, high - low], axis=-1)


def xywh_to_xyxy(boxes: Array) -> jax.Array:
    """Converts upper left corner, width, height to corners: [..., 4] → [..., 4]."""
    corner, size = _corners(boxes)
    return jnp.concatenate([corner, corner + size], axis=-1)


def _floats(boxes: Array) -> jax.Array:
    boxes = jnp.asarray(boxes)
    chex.assert_axis_dimension(boxes, -1, 4)
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _corners(boxes: Array) -> tuple[jax.Array, jax.Array]:
    boxes = _floats(boxes)
    return boxes[..., :2], boxes[..., 2:]


def _intersection_and_union(a: Array, b: Array) -> tuple[jax.Array, jax.Array]:
    a, b = _floats(a), _floats(b)
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = area(jnp.concatenate([low, high], axis=-1))
    return intersection, area(a) + area(b) - intersection


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    # Two where: the outer one drops the quotient 0/0 but not its gradient, which would be NaN (NaN × 0 is NaN).
    real = whole > _LEAST_AREA
    return jnp.where(real, part / jnp.where(real, whole, 1), 0)
