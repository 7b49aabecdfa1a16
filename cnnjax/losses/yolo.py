"""The losses of YOLOv2 and YOLOv3, for one image."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from cnnjax.ops import boxes as box_ops
from cnnjax.ops import cells, matching
from cnnjax.ops.cells import Cells, Grid
from cnnjax.types import Array

BoxLoss = Literal["codes", "ciou"]
OBJECT_SCALE = 5.0  # weight in YOLOv2's loss of the objectness where there is an object


class YoloLoss(NamedTuple):
    """Parts of the loss, each a sum over the cells of the image, []."""

    box: jax.Array
    objectness: jax.Array
    classes: jax.Array


def yolo_loss(
    maps: Sequence[Array],
    grids: Sequence[Grid],
    image_shape: tuple[int, int],
    boxes: Array,
    labels: Array,
    box_mask: Array,
    ignore: Array | None = None,
    *,
    box_loss: BoxLoss = "codes",
    ignore_threshold: float = 0.7,
) -> YoloLoss:
    """Loss of the raw outputs for one image (Redmon & Farhadi 2017, sec. 2; 2018, sec. 2.1).

    Every true box has one anchor in one cell (``matching.match_yolo``). There the box, the objectness and the class
    count; of all others the objectness, whose target is 0, unless the predicted box overlaps a true one with an IoU
    above ``ignore_threshold`` (0.7 in the program of YOLOv3, 0.6 in that of YOLOv2).

    Grids whose classes exclude one another are YOLOv2's: squared error of σ(objectness) against the IoU with the true
    box, weighted 5 at objects, and the cross-entropy of a softmax. Others are YOLOv3's: cross-entropies of logistic
    functions.

    Args:
      maps: raw outputs ``[h, w, a · (5 + classes)]`` of each grid.
      image_shape: height and width of the image in pixels.
      boxes: ``[m, 4]`` xyxy in pixels; labels: ``[m]``; box_mask: ``[m]``, False on padding.
      ignore: ``[m]``, True for objects that are neither to be found nor false alarms where they are (difficult, crowd).
      box_loss: "codes": cross-entropy of the offsets in the cell and squared error of the log sizes, as the authors'
        program, weighted 2 − w · h of the box as shares of the image; "ciou": 1 − CIoU with the same weight (YOLOv4).
    """
    chex.assert_equal(len(maps), len(grids))
    parts = [cells.split(raw, grid) for raw, grid in zip(maps, grids, strict=True)]
    anchors = [jnp.array(grid.anchors, jnp.float32) for grid in grids]
    scales = [grid.scale for grid in grids]
    decoded = [
        cells.decode(part.codes, size, scale, image_shape)
        for part, size, scale in zip(parts, anchors, scales, strict=True)
    ]
    flat = Cells(*(jnp.concatenate([x.reshape(-1, *x.shape[3:]) for x in each]) for each in zip(*parts, strict=True)))
    found = jnp.concatenate([x.reshape(-1, 4) for x in decoded])

    real = jnp.asarray(box_mask, bool)
    wanted = real if ignore is None else real & ~jnp.asarray(ignore, bool)
    shapes = [part.codes.shape[:3] for part in parts]
    strides = [image_shape[0] / height for height, _, _ in shapes]
    match = matching.match_yolo(boxes, wanted, anchors, strides, image_shape)
    begins = jnp.cumsum(jnp.array([0, *(h * w * a for h, w, a in shapes[:-1])]))
    widths, counts = (jnp.array([shape[i] for shape in shapes]) for i in (1, 2))
    place = (match.row * widths[match.scale] + match.column) * counts[match.scale] + match.anchor
    place = begins[match.scale] + place
    valid = match.valid.astype(jnp.float32)

    size = jnp.concatenate([jnp.tile(each, (h * w, 1)) for each, (h, w, _) in zip(anchors, shapes, strict=True)])[place]
    cell = jnp.array(strides)[match.scale][:, None]
    share = box_ops.area(boxes) / (image_shape[0] * image_shape[1])
    if box_loss == "ciou":
        errors = 1 - box_ops.ciou_paired(found[place], boxes)
    else:
        errors = _code_errors(flat.codes[place], cells.encode(boxes, size, cell))
    box = (errors * (2 - share) * valid).sum()

    overlap = jax.lax.stop_gradient(box_ops.iou(found, boxes)) * real
    owned = jnp.zeros(len(found), bool).at[jnp.where(match.valid, place, len(found))].set(True, mode="drop")
    free = ~owned & (overlap.max(1, initial=0) <= ignore_threshold)
    if grids[0].exclusive:
        score = jax.nn.sigmoid(flat.objectness)
        target = overlap[place, jnp.arange(len(place))]
        at_objects = OBJECT_SCALE * (jnp.square(score[place] - target) * valid).sum() / 2
        objectness = at_objects + (jnp.square(score) * free).sum() / 2
        of_class = optax.softmax_cross_entropy_with_integer_labels(flat.classes[place], labels)
    else:
        cross = optax.sigmoid_binary_cross_entropy(flat.objectness, owned.astype(jnp.float32))
        objectness = (cross * (owned | free)).sum()
        one_hot = jax.nn.one_hot(labels, flat.classes.shape[-1])
        of_class = optax.sigmoid_binary_cross_entropy(flat.classes[place], one_hot).sum(-1)
    return YoloLoss(box, objectness, (of_class * valid).sum())


def _code_errors(codes: jax.Array, targets: jax.Array) -> jax.Array:
    """Errors [m] of raw codes [m, 4]: their derivatives by the codes are prediction minus target, as in the program."""
    offsets = optax.sigmoid_binary_cross_entropy(codes[:, :2], targets[:, :2])
    return offsets.sum(-1) + jnp.square(codes[:, 2:] - targets[:, 2:]).sum(-1) / 2
