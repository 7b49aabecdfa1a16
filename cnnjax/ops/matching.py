"""Matching of anchors with the true boxes of one image; ``jax.vmap`` makes it for a batch.

True boxes are ``boxes [m, 4]`` xyxy in pixels with ``box_mask [m]``, False on rows that only fill up; shapes of results
are static.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cnnjax.ops import boxes as box_ops
from cnnjax.types import Array


class SSDMatch(NamedTuple):
    """True box of each default box: ``truth [k]`` int32, its number (0 without one), ``positive [k]`` bool."""

    truth: jax.Array
    positive: jax.Array


class YOLOMatch(NamedTuple):
    """Place of each true box in the outputs of YOLO, each [m]: int32, 0 without one, and bool ``valid``.

    Attributes:
      scale: number of the output.
      row: row of its grid.
      column: column of its grid.
      anchor: number of the anchor within the scale.
      valid: False for what only fills up, for a box that has no area or its center outside of the image, and for one
        whose place a later box takes.
    """

    scale: jax.Array
    row: jax.Array
    column: jax.Array
    anchor: jax.Array
    valid: jax.Array


def match_ssd(default_boxes: Array, boxes: Array, box_mask: Array, threshold: float = 0.5) -> SSDMatch:
    """The matching of SSD (Liu et al. 2016, sec. 2.2), equal to torchvision's ``SSDMatcher``.

    Each default box belongs to the true box that it overlaps most, if their IoU is ``threshold`` or more. Before that
    each true box gets the default box that overlaps it most, whatever their IoU, if above 0. Where several want the
    same one, the last of them has it; of equal overlaps the first counts.

    Args:
      default_boxes: [k, 4].
      boxes: [m, 4], m may be 0.
      box_mask: [m].
      threshold: the least IoU.
    """
    chex.assert_shape(box_mask, (len(boxes),))
    if not len(boxes):
        return SSDMatch(jnp.zeros(len(default_boxes), jnp.int32), jnp.zeros(len(default_boxes), bool))
    overlap = jnp.where(jnp.asarray(box_mask)[:, None], box_ops.iou(boxes, default_boxes), 0)
    wanted, truths = overlap.argmax(1), jnp.arange(len(boxes))
    # The maximum makes the last truth win, whatever the order in which a device writes.
    owner = jnp.full(len(default_boxes), -1).at[wanted].max(jnp.where(overlap.max(1) > 0, truths, -1))
    truth = jnp.where(owner >= 0, owner, overlap.argmax(0))
    positive = (owner >= 0) | (overlap.max(0) >= threshold)
    return SSDMatch(jnp.where(positive, truth, 0).astype(jnp.int32), positive)


def match_yolo(
    boxes: Array,
    box_mask: Array,
    anchors: Sequence[Array],
    strides: Sequence[float],
    image_shape: Sequence[int],
) -> YOLOMatch:
    """The matching of YOLOv2 and v3 (Redmon & Farhadi 2018, sec. 2.1): one anchor in one cell for each true box.

    The anchor is that of the best IoU when both lie on one center, among the anchors of all scales (of equal ones the
    first); the cell is that of the box's center. Of boxes with the same place the last keeps it, as in Darknet.

    Args:
      boxes: [m, 4].
      box_mask: [m].
      anchors: sizes [a, 2] for each scale, width and height in pixels.
      strides: pixels of a cell for each scale.
      image_shape: height, width (, channels) in pixels.
    """
    chex.assert_shape(box_mask, (len(boxes),))
    chex.assert_equal(len(anchors), len(strides))
    height, width = image_shape[:2]
    counts = [len(sizes) for sizes in anchors]
    sizes = jnp.concatenate([jnp.asarray(each, jnp.float32) for each in anchors])
    center_and_size = box_ops.xyxy_to_cxcywh(boxes)
    center, size = center_and_size[:, :2], center_and_size[:, 2:]
    centered = [jnp.concatenate([-each / 2, each / 2], -1) for each in (size, sizes)]
    best = box_ops.iou(*centered).argmax(1)
    scale = jnp.repeat(jnp.arange(len(counts)), jnp.array(counts), total_repeat_length=sum(counts))[best]
    anchor = jnp.concatenate([jnp.arange(count) for count in counts])[best]
    inside = ((center >= 0) & (center < jnp.array([width, height]))).all(1)
    real = jnp.asarray(box_mask, bool) & (size > 0).all(1) & inside
    cell = jnp.where(real[:, None], center, 0) // jnp.asarray(strides)[scale][:, None]
    place = jnp.stack([scale, cell[:, 1], cell[:, 0], anchor], 1).astype(jnp.int32)
    same = (place[:, None] == place).all(-1) & real
    taken = jnp.triu(same, 1).any(1)  # [i, j]: box j, real and after i, is in i's place
    valid = real & ~taken
    scale, row, column, anchor = jnp.where(valid[:, None], place, 0).T
    return YOLOMatch(scale, row, column, anchor, valid)
