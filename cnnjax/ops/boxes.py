"""Boxes: ``float [..., 4]``, ``(x_min, y_min, x_max, y_max)`` in pixels, the left edge of column x at x.

Other formats stand in the names of functions: ``cxcywh`` is center, width, height; ``xywh`` upper left corner, width,
height. Every function can be differentiated everywhere. A box with x_max ≤ x_min or y_max ≤ y_min has area 0; a ratio
0/0 is 0, and so is its gradient. Integers and half precision are computed in float32, which holds the area of any
image.
"""

import math

import chex
import jax
import jax.numpy as jnp

from cnnjax.types import Array

_LEAST_AREA = 1e-12  # the gradient of a quotient divides by the area's square, which underflows in float32 below this
_LEAST_SIDE = 1e-6  # has a logarithm
_GREATEST_LOG_SIDE = math.log(1000 / 16)  # a box at most this much larger than its anchor: 1,000 pixels of 16


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


def diou(a: Array, b: Array) -> jax.Array:
    """Distance IoU of every box of a with every box of b: [n, 4], [m, 4] → [n, m] in −1…1, see `diou_paired`."""
    chex.assert_rank([a, b], 2)
    return diou_paired(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


def ciou(a: Array, b: Array) -> jax.Array:
    """Complete IoU of every box of a with every box of b: [n, 4], [m, 4] → [n, m] in −1.5…1, see `ciou_paired`."""
    chex.assert_rank([a, b], 2)
    return ciou_paired(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


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
    hull = area(_hull(a, b))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def diou_paired(a: Array, b: Array) -> jax.Array:
    """Distance IoU of pairs of boxes (Zheng et al. 2020, eq. 7).

    The IoU minus the squared distance of the centers over the squared diagonal of the smallest box around both. As a
    loss, ``1 - diou_paired(a, b)``, it draws also a box to the other that lies inside of it.

    Args:
        a: [..., 4].
        b: [..., 4]; leading axes broadcast.

    Returns:
        [...] in −1…1.
    """
    low, high = _corners(_hull(a, b))
    diagonal = jnp.square(high - low).sum(-1)
    distance = jnp.square(xyxy_to_cxcywh(a)[..., :2] - xyxy_to_cxcywh(b)[..., :2]).sum(-1)
    return iou_paired(a, b) - _ratio(distance, diagonal)


def ciou_paired(a: Array, b: Array) -> jax.Array:
    """Complete IoU of pairs of boxes (Zheng et al. 2020, eq. 8 to 11).

    The distance IoU minus alpha · v, where v compares the aspect ratios: (2/π · difference of arctan(width / height))².
    Its weight alpha = v / (1 − IoU + v) has no gradient, as in the paper's code. v is 0 where a box has no side.

    Args:
        a: [..., 4].
        b: [..., 4]; leading axes broadcast.

    Returns:
        [...] in −1.5…1: alpha · v is at most 1/2.
    """
    (angle_a, real_a), (angle_b, real_b) = _aspect(a), _aspect(b)
    v = jnp.where(real_a & real_b, jnp.square(2 / math.pi * (angle_a - angle_b)), 0)
    alpha = jax.lax.stop_gradient(_ratio(v, 1 - iou_paired(a, b) + v))
    return diou_paired(a, b) - alpha * v


def encode_ssd(boxes: Array, anchors: Array, variances: tuple[float, float] = (0.1, 0.2)) -> jax.Array:
    """Codes of boxes relative to anchors (Liu et al. 2016, eq. 2): what a detector has to predict.

    ``(center − anchor's center) / anchor's size / variances[0]``, ``log(size / anchor's size) / variances[1]``.
    Variances of 0.1 and 0.2 are torchvision's weights (10, 10, 5, 5); (1, 1) gives Faster R-CNN's codes. A side below
    1e-6 pixels counts as one of that length.

    Args:
        boxes: [..., 4].
        anchors: [..., 4]; leading axes broadcast.
        variances: of the centers and of the logarithms of the sizes.

    Returns:
        [..., 4]: x, y, width, height.
    """
    (center, size), (origin, unit) = _center_and_size(boxes), _center_and_size(anchors)
    return jnp.concatenate([(center - origin) / unit / variances[0], jnp.log(size / unit) / variances[1]], axis=-1)


def decode_ssd(codes: Array, anchors: Array, variances: tuple[float, float] = (0.1, 0.2)) -> jax.Array:
    """Boxes [..., 4] of codes [..., 4], the inverse of `encode_ssd`.

    A box is at most 62.5 times (1000 / 16) as wide or high as its anchor, as in torchvision.
    """
    (moves, logs), (origin, unit) = _corners(codes), _center_and_size(anchors)
    center = moves * variances[0] * unit + origin
    size = jnp.exp(jnp.minimum(logs * variances[1], _GREATEST_LOG_SIDE)) * unit
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def clip(boxes: Array, height: Array | int, width: Array | int) -> jax.Array:
    """Boxes [..., 4] cut to an image; a box outside of it becomes an empty one on the border."""
    boxes = _floats(boxes)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).astype(boxes.dtype))


def mirrored(boxes: Array, length: Array | int, axis: int) -> jax.Array:
    """Boxes [..., 4] in the mirror image, of ``length`` pixels: ``axis`` 0 exchanges top and bottom, 1 the sides."""
    low, high = 1 - axis, 3 - axis
    boxes = jnp.asarray(boxes)
    return boxes.at[..., low].set(length - boxes[..., high]).at[..., high].set(length - boxes[..., low])


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


def _center_and_size(boxes: Array) -> tuple[jax.Array, jax.Array]:
    low, high = _corners(boxes)
    return (low + high) / 2, jnp.maximum(high - low, _LEAST_SIDE)


def _aspect(boxes: Array) -> tuple[jax.Array, jax.Array]:
    """Angle [...] whose tangent is width / height, and where the box has a side, so that there is one."""
    low, high = _corners(boxes)
    sides = jnp.maximum(high - low, 0)
    real = jnp.square(sides).sum(-1) > _LEAST_AREA
    # As in `_ratio`: the gradient of the angle between sides of 0 would be NaN.
    sides = jnp.where(real[..., None], sides, 1)
    return jnp.arctan2(sides[..., 0], sides[..., 1]), real


def _hull(a: Array, b: Array) -> jax.Array:
    """The smallest boxes [..., 4] around pairs of boxes."""
    a, b = _floats(a), _floats(b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    return jnp.concatenate([low, high], axis=-1)


def _intersection_and_union(a: Array, b: Array) -> tuple[jax.Array, jax.Array]:
    a, b = _floats(a), _floats(b)
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = area(jnp.concatenate([low, high], axis=-1))
    return intersection, area(a) + area(b) - intersection


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    # Two where: the outer one drops the quotient 0/0 but not its gradient, which would be NaN (NaN × 0 is NaN).
    real = whole > _LEAST_AREA
    return jnp.where(real, part / jnp.where(real, whole, 1), 0)
