"""Object detection: any number of objects in an image, the class of each and the box around it.

Batches have ``image`` (uint8 [n, s, s, 3]; float in training), ``boxes`` float32 [n, k, 4], xyxy in pixels, ``labels``
int32 [n, k], ``box_mask`` bool [n, k] and, where the data set has such, ``ignore`` bool [n, k] (difficult, crowd) and
``image_label`` int32 [n], the class of an image whose boxes are not known, −1 for an image with boxes.

A detector is a model whose ``apply`` gives raw outputs, with ``decode(outputs, (height, width))`` → boxes [n, k, 4] and
scores [n, k, classes], ``head``, a key of ``LOSSES``, and ``parents``, of the classes where they are a tree (YOLO9000,
``ops.wordtree``). Then evaluation takes the scores of all nodes, and a prediction is the deepest node that is certain.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import losses, tasks
from cnnjax.data.preparation import SHOWN_SCORE
from cnnjax.metrics import detection
from cnnjax.ops import boxes as ops
from cnnjax.ops import nms, wordtree
from cnnjax.tasks import Prepare
from cnnjax.types import Array, Batch, Example, Key, Picture, Prediction, PyTree, Rows, Sums, Task, UserError

OBJECTS = None  # boxes in each image: any number
LEAST_SCORE = 0.001  # below it a detection hardly changes the average precision
MOST = 100  # detections of an image, as COCO counts; of a tree, in each level
CERTAIN = 0.5  # probability above which a prediction goes to a deeper node of a tree


class Detector(Protocol):
    """Attributes of a detector, beside those of a Flax module."""

    head: str
    parents: wordtree.Parents

    def decode(self, outputs: Any, image_shape: tuple[int, int]) -> tuple[Array, Array]: ...


def _yolo(model: Any, outputs: Any, batch: Batch, options: Mapping[str, Any]) -> dict[str, Array]:
    height, width = batch["image"].shape[1:3]

    def one(maps: Any, *truth: Array) -> Any:
        return losses.yolo_loss(maps, model.grids, (height, width), *truth, **options)

    truth = [batch["boxes"], batch["labels"], batch["box_mask"], _ignored(batch)]
    truth += [batch["image_label"]] if "image_label" in batch else []
    parts = jax.vmap(one)(outputs, *truth)
    return {"box": parts.box, "objectness": parts.objectness, "class": parts.classes}


def _ssd(model: Any, outputs: Any, batch: Batch, options: Mapping[str, Any]) -> dict[str, Array]:
    default = model.default_boxes(batch["image"].shape[1:])

    def one(outputs: Any, *truth: Array) -> losses.MultiboxLoss:
        return losses.multibox_loss(outputs, default, *truth, variances=model.variances, **options)

    loss = jax.vmap(one)(outputs, batch["boxes"], batch["labels"], batch["box_mask"], _ignored(batch))
    # The mean of an image is over the positives of the batch, so that each of them counts the same.
    share = len(batch["image"]) / jnp.maximum(loss.positives.sum(), 1)
    return {name: part * share for name, part in loss.parts.items()}


LOSSES: Mapping[str, Callable[[Any, Any, Batch, Mapping[str, Any]], dict[str, Array]]] = {"ssd": _ssd, "yolo": _yolo}
"""Head of a detector → (model, outputs, batch, options) → parts of the loss, each [n]."""


def _ignored(batch: Batch) -> Array:
    return jnp.asarray(batch["ignore"]) if "ignore" in batch else jnp.zeros(batch["box_mask"].shape, bool)


def network(create: Callable[..., linen.Module], classes: Sequence[str], **fields: Any) -> linen.Module:
    """Detector for ``classes``, made by ``create``; ``fields`` are more fields of it."""
    return create(num_classes=len(classes), **fields)


def task(
    model: Any,
    prepare: Prepare,
    classes: Sequence[str],
    *,
    weights: Mapping[str, float] | None = None,
    iou_threshold: float = 0.45,
    score_threshold: float = LEAST_SCORE,
    mirrored: Sequence[int] = (),
    **loss_options: Any,
) -> Task:
    """Detection by a ``Detector``.

    Args:
      weights: part of the loss → its weight; 1 where it is absent.
      iou_threshold: overlap above which the worse of two boxes of a class is suppressed.
      score_threshold: score from which detections are returned.
      mirrored: axes, 1 (top to bottom) and 2 (left to right), along which predictions also see mirror images; the boxes
        of all are suppressed together.
      **loss_options: of the function in ``losses`` for the model's head.
    """
    weigh = weights or {}

    def loss_fn(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        state_names = [name for name in variables if name != "params"]
        (outputs, _), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        parts = LOSSES[model.head](model, outputs, batch, loss_options)
        total = functools.reduce(jnp.add, (weigh.get(name, 1.0) * part for name, part in parts.items()))
        sums = {**{name: part.sum() for name, part in parts.items()}, "loss": total.sum()}
        return total.mean(), (state, {**sums, "count": jnp.float32(len(batch["image"]))})

    def detected(variables: PyTree, images: Array, *, deepest: bool) -> dict[str, Array]:
        prepared, (height, width) = prepare(images), images.shape[1:3]
        seen = []
        for flip in tasks.mirrors(mirrored):
            outputs, _ = model.apply(variables, jnp.flip(prepared, flip), train=False)
            boxes, scores = model.decode(outputs, (height, width))
            for axis in flip:
                boxes = ops.mirrored(boxes, images.shape[axis], axis - 1)
            seen.append((boxes, scores))
        boxes, scores = (jnp.concatenate(each, 1) for each in zip(*seen, strict=True))
        return found(model, boxes, scores, (height, width), score_threshold, iou_threshold, deepest=deepest)

    def eval_fn(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        predicted = detected(variables, batch["image"], deepest=False)
        truth = {f"true_{name}": batch[name] for name in ("boxes", "labels", "box_mask")}
        return {"count": batch["example_mask"].sum()}, {**predicted, **truth, "true_ignore": _ignored(batch)}

    return Task(
        loss_fn=loss_fn,
        eval_fn=eval_fn,
        figures=lambda sums, rows: figures(sums, rows, classes),
        predict=functools.partial(detected, deepest=True),
        describe=lambda prediction, most: describe(prediction, classes, most),
        draw=lambda example, prediction: draw(example, prediction, classes),
        best="map50",
    )


def found(
    model: Any,
    boxes: Array,
    scores: Array,
    image_shape: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
    *,
    deepest: bool = True,
) -> dict[str, Array]:
    """Detections of a batch by falling score: ``boxes`` [n, 100, 4] cut to the image, ``scores``, ``labels`` and
    ``valid`` [n, 100]; where not valid, zeros. With ``deepest`` False there are 100 in each level of a tree, see above.

    Args:
      boxes, scores: of ``model.decode``.
    """
    every = model.parents and not deepest
    most = MOST * wordtree.ancestors(model.parents).shape[1] if every else MOST

    def one(boxes: Array, scores: Array) -> nms.Detections:
        thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
        scores = _certain(model.parents, scores) if model.parents and deepest else scores
        return nms.detections(ops.clip(boxes, *image_shape), scores, max_outputs=most, **thresholds)

    return jax.vmap(one)(boxes, scores)._asdict()


def _certain(parents: wordtree.Parents, scores: Array) -> jax.Array:
    """Scores [k, nodes] with those of the deepest certain nodes only; they are objectness times P(node)."""
    coarsest = [node for node, parent in enumerate(parents) if parent == wordtree.ROOT]
    objectness = scores[:, coarsest].sum(1, keepdims=True)
    node, _ = wordtree.predict(parents, scores / jnp.maximum(objectness, jnp.finfo(jnp.float32).tiny), CERTAIN)
    return jnp.where(jnp.arange(len(parents)) == node[:, None], scores, 0)


def figures(sums: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Mean of each part of the loss in training, average precision in evaluation.

    ``map50`` is the mean over the classes of ``ap50/NAME``, the area under the precision–recall curve at an IoU of 0.5
    (Pascal VOC since 2010); ``ap`` is COCO's, over IoU 0.50 … 0.95.
    """
    means = {name: float(x) / float(sums["count"]) for name, x in sums.items() if name != "count"}
    return means | (precision(*listed(rows), classes) if rows else {})


Objects = list[dict[str, np.ndarray]]


def listed(rows: Mapping[str, np.ndarray]) -> tuple[Objects, Objects]:
    """Truths and predictions for ``metrics.detection``, one dict per image, from the rows of an evaluation."""
    truths, predictions = [], []
    for i, mask in enumerate(np.asarray(rows["true_box_mask"], bool)):
        own = {name: rows[f"true_{name}"][i][mask] for name in ("boxes", "labels")}
        truths.append({**own, "difficult": np.asarray(rows["true_ignore"][i][mask], bool)})
        valid = np.asarray(rows["valid"][i], bool)
        predictions.append({name: rows[name][i][valid] for name in ("boxes", "labels", "scores")})
    return truths, predictions


def precision(truths: Objects, predictions: Objects, classes: Sequence[str]) -> dict[str, float]:
    """Average precisions, see ``figures``.

    Raises:
      UserError: no object counts.
    """
    by_class = detection.voc_ap(truths, predictions, points=None)
    coco = detection.coco_map(truths, predictions)
    if not by_class:
        raise UserError("no average precision: every object of the split is difficult or a crowd: choose another split")
    mean = float(np.mean(list(by_class.values())))
    return {"map50": mean, "ap": coco["ap"], **{f"ap50/{classes[k]}": x for k, x in by_class.items()}}


class Mistake(NamedTuple):
    """Object that is not found ("miss"), or detection without an object ("false alarm"), of image number ``image``."""

    kind: str
    image: int
    box: np.ndarray
    name: str
    weight: float

    def picture(self, image: np.ndarray) -> Picture:
        """Image with the box."""
        return Picture(image, self.name, self.box[None], ("",), (3 if self.kind == "miss" else 1,))


def mistakes(truths: Objects, predictions: Objects, classes: Sequence[str]) -> list[Mistake]:
    """Mistakes with scores from ``SHOWN_SCORE`` at an IoU of 0.5: the largest misses, the surest false alarms first."""
    found = []
    for i, (truth, each) in enumerate(zip(truths, predictions, strict=True)):
        shown = each["scores"] >= SHOWN_SCORE
        boxes, labels, scores = each["boxes"][shown], each["labels"][shown], each["scores"][shown]
        hit = (np.asarray(ops.iou(boxes, truth["boxes"])) >= 0.5) & (labels[:, None] == truth["labels"])
        for k in np.flatnonzero(~hit.any(0) & ~truth["difficult"]):
            box = truth["boxes"][k]
            found.append(Mistake("miss", i, box, classes[truth["labels"][k]], float((box[2:] - box[:2]).prod())))
        for k in np.flatnonzero(~hit.any(1)):
            name = f"{classes[labels[k]]} {scores[k]:.0%}"
            found.append(Mistake("false alarm", i, boxes[k], name, float(scores[k])))
    return sorted(found, key=lambda each: -each.weight)


def describe(prediction: Prediction, classes: Sequence[str], most: int | None) -> dict[str, Any]:
    """Objects, the likeliest first, ``most`` or all: name, score, and box, xyxy in the pixels of the prediction."""
    shown = np.flatnonzero(np.asarray(prediction["valid"]) & (np.asarray(prediction["scores"]) >= SHOWN_SCORE))
    return {
        "predictions": [
            {
                "name": classes[int(prediction["labels"][i])],
                "score": round(float(prediction["scores"][i]), 4),
                "box": [round(float(x), 1) for x in prediction["boxes"][i]],
            }
            for i in shown[:most]
        ]
    }


def draw(example: Example, prediction: Prediction, classes: Sequence[str]) -> Picture:
    """Image with the detections, and the true boxes, unnamed, where the example has them."""
    shown = np.flatnonzero(np.asarray(prediction["valid"]) & (np.asarray(prediction["scores"]) >= SHOWN_SCORE))
    labels = np.asarray(prediction["labels"])[shown]
    boxes = [np.asarray(prediction["boxes"])[shown]]
    names = [f"{classes[k]} {prediction['scores'][i]:.0%}" for i, k in zip(shown, labels, strict=True)]
    colors = [1 + int(k) for k in labels]
    if "boxes" in example:
        true = np.asarray(example["boxes"])[np.asarray(example.get("box_mask", np.ones(len(example["boxes"]))), bool)]
        boxes, names, colors = [true, *boxes], [""] * len(true) + names, [0] * len(true) + colors
    return Picture(example["image"], f"{len(shown)} objects", np.concatenate(boxes), tuple(names), tuple(colors))
