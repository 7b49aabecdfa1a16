"""The losses of YOLOv2 and YOLOv3, for one image."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from cnnjax.ops import boxes as box_ops
from cnnjax.ops import cells, matching, wordtree
from cnnjax.ops.cells import Cells, Grid
from cnnjax.types import Array

BoxLoss = Literal["codes", "ciou"]
OBJECT_SCALE = 5.0  # weight in YOLOv2's loss of the objectness where there is an object
ASSUMED_IOU = 0.3  # of the box that best predicts the label of an image without boxes (YOLO9000, sec. 4)


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
    image_label: Array | None = None,
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
    functions. Where the classes are a tree (``Grid.parents``), the cross-entropy is that of the nodes from the root to
    the label, in both.

    An image that only has a label trains the class of the one prediction that is surest of it, and its objectness up to
    0.3, the IoU that it is assumed to have; nothing else (YOLO9000, sec. 4, "Joint classification and detection").

    Args:
      maps: raw outputs ``[h, w, a · (5 + classes)]`` of each grid.
      image_shape: height and width of the image in pixels.
      boxes: ``[m, 4]`` xyxy in pixels; labels: ``[m]``; box_mask: ``[m]``, False on padding.
      ignore: ``[m]``, True for objects that are neither to be found nor false alarms where they are (difficult, crowd).
      image_label: ``[]``, class of an image whose boxes are not known, −1 for an image with boxes.
      box_loss: "codes": cross-entropy of the offsets in the cell and squared error of the log sizes, as the authors'
        program, weighted 2 − w · h of the box as shares of the image; "ciou": 1 − CIoU with the same weight (YOLOv4).
    """
    chex.assert_equal(len(maps), len(grids))
    found = _flat(maps, grids, image_shape)
    real = jnp.asarray(box_mask, bool)
    wanted = real if ignore is None else real & ~jnp.asarray(ignore, bool)
    anchors = [jnp.array(grid.anchors, jnp.float32) for grid in grids]
    strides = [image_shape[0] / raw.shape[0] for raw in maps]
    match = matching.match_yolo(boxes, wanted, anchors, strides, image_shape)
    place, valid = _places(match, [raw.shape for raw in maps], grids), match.valid.astype(jnp.float32)

    if box_loss == "ciou":
        errors = 1 - box_ops.ciou_paired(found.boxes[place], boxes)
    else:
        cell = jnp.array(strides)[match.scale][:, None]
        errors = _code_errors(found.cells.codes[place], cells.encode(boxes, found.anchors[place], cell))
    share = box_ops.area(boxes) / (image_shape[0] * image_shape[1])
    box = (errors * (2 - share) * valid).sum()

    overlap = jax.lax.stop_gradient(box_ops.iou(found.boxes, boxes)) * real
    objectness = _objectness(found.cells.objectness, place, overlap, match.valid, ignore_threshold, grids[0])
    entropy = _class_entropy(found.cells.classes[place], labels, grids[0])
    loss = YoloLoss(box, objectness, (entropy * valid).sum())
    if image_label is None:
        return loss
    of_image = _image_loss(found.cells, jnp.maximum(image_label, 0), grids[0])
    return jax.tree.map(functools.partial(jnp.where, image_label < 0), loss, of_image)


def _class_entropy(logits: jax.Array, labels: Array, grid: Grid) -> jax.Array:
    if grid.parents:
        return wordtree.loss(grid.parents, logits, labels)
    if grid.exclusive:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1])).sum(-1)


def _image_loss(found: Cells, label: jax.Array, grid: Grid) -> YoloLoss:
    """Loss of an image that only has a label; ``found`` has a row for each prediction."""
    of_label = cells.class_probabilities(found.classes, grid)[:, label]
    surest = jax.lax.stop_gradient(jax.nn.sigmoid(found.objectness) * of_label).argmax()
    logit = found.objectness[surest]
    if grid.exclusive:
        objectness = OBJECT_SCALE * jnp.square(jax.nn.sigmoid(logit) - ASSUMED_IOU) / 2
    else:
        least = optax.sigmoid_binary_cross_entropy(jnp.log(ASSUMED_IOU / (1 - ASSUMED_IOU)), ASSUMED_IOU)
        objectness = optax.sigmoid_binary_cross_entropy(logit, ASSUMED_IOU) - least
    objectness = jnp.where(jax.nn.sigmoid(logit) < ASSUMED_IOU, objectness, 0)
    return YoloLoss(jnp.zeros(()), objectness, _class_entropy(found.classes[surest], label, grid))


class _Predictions(NamedTuple):
    """Predictions of all grids in one row [k, …]: by grid, row, column, anchor."""

    cells: Cells
    boxes: jax.Array
    anchors: jax.Array


def _flat(maps: Sequence[Array], grids: Sequence[Grid], image_shape: tuple[int, int]) -> _Predictions:
    rows = []
    for raw, grid in zip(maps, grids, strict=True):
        part, size = cells.split(raw, grid), jnp.array(grid.anchors, jnp.float32)
        boxes = cells.decode(part.codes, size, grid.scale, image_shape)
        anchors = jnp.broadcast_to(size, (*boxes.shape[:3], 2))
        rows.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), _Predictions(part, boxes, anchors)))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)


def _places(match: matching.YOLOMatch, shapes: Sequence[tuple[int, ...]], grids: Sequence[Grid]) -> jax.Array:
    """Number [m] of the matched prediction in the row of all."""
    counts = [len(grid.anchors) for grid in grids]
    sizes = [shape[0] * shape[1] * count for shape, count in zip(shapes, counts, strict=True)]
    begins = jnp.array([sum(sizes[:i]) for i in range(len(sizes))])[match.scale]
    width = jnp.array([shape[1] for shape in shapes])[match.scale]
    return begins + (match.row * width + match.column) * jnp.array(counts)[match.scale] + match.anchor


def _objectness(
    logits: jax.Array, place: jax.Array, overlap: jax.Array, valid: jax.Array, ignore_threshold: float, grid: Grid
) -> jax.Array:
    """Loss of the objectness [k] of all predictions; ``overlap`` [k, m] is their IoU with the objects.

    YOLOv2's errors are at objects against their IoU with the prediction at ``place``, weighted, and elsewhere against
    0; YOLOv3's cross-entropies against 1 and 0.
    """
    owned = jnp.zeros(len(overlap), bool).at[jnp.where(valid, place, len(overlap))].set(True, mode="drop")
    free = ~owned & (overlap.max(1, initial=0) <= ignore_threshold)
    if not grid.exclusive:
        cross = optax.sigmoid_binary_cross_entropy(logits, owned.astype(jnp.float32))
        return (cross * (owned | free)).sum()
    score, own = jax.nn.sigmoid(logits), overlap[place, jnp.arange(len(place))]
    at_objects = (jnp.square(score[place] - own) * valid).sum()
    return (OBJECT_SCALE * at_objects + (jnp.square(score) * free).sum()) / 2


def _code_errors(codes: jax.Array, targets: jax.Array) -> jax.Array:
    """Errors [m] of raw codes [m, 4]: their derivatives by the codes are prediction minus target, as in the program."""
    offsets = optax.sigmoid_binary_cross_entropy(codes[:, :2], targets[:, :2])
    return offsets.sum(-1) + jnp.square(codes[:, 2:] - targets[:, 2:]).sum(-1) / 2
