"""Detection by a small network that slides over a picture, window by window or as a fully convolutional network.

For each window the network gives the numbers of the chapter: logits of the classes, of which softmax makes
probabilities; one logit of objectness, for the sigmoid; and a box, (cx, cy, √w, √h) as shares of the window, as they
are. It trains on crops: ``image`` of the window's size, with one row in ``boxes``, ``labels`` and ``box_mask``, which
is False where no object is in the middle of the crop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.ops import boxes as ops
from cnnjax.ops import nms
from cnnjax.ops.sliding import Windows
from cnnjax.tasks import Prepare, localize
from cnnjax.tasks.classify import cross_entropy
from cnnjax.types import Array, Batch, Example, Key, Picture, Prediction, PyTree, Rows, Sums, Task

OBJECTS = 1  # boxes of each crop
BOX_WEIGHT = 10.0  # of the squared error, in shares, beside the losses in nats

Apply = Callable[[PyTree, Array], jax.Array]
"""(variables, prepared images [n, h, w, c]) → numbers of each window [n, rows, columns, classes + 5]."""


class Numbers(NamedTuple):
    """Parts of the network's output: ``logits`` [..., classes], ``objectness`` [...] and ``codes`` [..., 4]."""

    logits: Array
    objectness: Array
    codes: Array

    @classmethod
    def of(cls, output: Array) -> "Numbers":
        """Parts of ``output`` [..., classes + 5]."""
        return cls(output[..., :-5], output[..., -5], output[..., -4:])


def network(create: Callable[..., linen.Module], classes: Sequence[str]) -> linen.Module:
    """Classifier whose last layer gives a number for each class, one of objectness, and four of the box."""
    return create(num_classes=len(classes) + 5)


def task(model: linen.Module, prepare: Prepare, classes: Sequence[str]) -> Task:
    """Class, objectness and box of a crop: cross-entropy, binary cross-entropy and mean squared error.

    Crops without an object add only the loss of objectness.
    """

    def loss_fn(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        state_names = [name for name in variables if name != "params"]
        (output, _), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        found, present, size = Numbers.of(output), batch["box_mask"][:, 0], batch["image"].shape[1]
        known = cross_entropy(found.logits, batch["labels"][:, 0])
        known += BOX_WEIGHT * localize.box_losses("mse", found.codes, batch["boxes"][:, 0], size)
        losses = optax.sigmoid_binary_cross_entropy(found.objectness, present) + jnp.where(present, known, 0)
        return losses.mean(), (state, {**compare(found, batch, jnp.ones_like(losses)), "loss": losses.sum()})

    def eval_fn(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        output, _ = model.apply(variables, prepare(batch["image"]), train=False)
        return compare(Numbers.of(output), batch, batch["example_mask"]), {}

    def predict(variables: PyTree, images: Array) -> dict[str, Array]:
        output, _ = model.apply(variables, prepare(images), train=False)
        found, size = Numbers.of(output), images.shape[1]
        return {
            "probabilities": jax.nn.softmax(found.logits),
            "objectness": jax.nn.sigmoid(found.objectness),
            "boxes": ops.clip(localize.decode(found.codes, size), size, size),
        }

    return Task(
        loss_fn=loss_fn,
        eval_fn=eval_fn,
        figures=lambda sums, rows: figures(sums),
        predict=predict,
        describe=lambda prediction, most: describe(prediction, classes, most),
        draw=lambda example, prediction: draw(example, prediction, classes),
        best="right",
    )


def compare(found: Numbers, batch: Batch, mask: Array) -> Sums:
    """Sums over the crops that count: ``objectness`` (right by 0.5), ``right`` (and, of objects, class and IoU ≥ 0.5),
    ``count``; over those with an object ``correct``, ``iou``, ``objects``."""
    present = batch["box_mask"][:, 0]
    overlap = ops.iou_paired(localize.decode(found.codes, batch["image"].shape[1]), batch["boxes"][:, 0])
    correct = found.logits.argmax(-1) == batch["labels"][:, 0]
    seen = (found.objectness > 0) == present
    return {
        "objectness": (seen * mask).sum(),
        "right": ((seen & (~present | (correct & (overlap >= 0.5)))) * mask).sum(),
        "count": mask.sum(),
        "correct": (correct * present * mask).sum(),
        "iou": (overlap * present * mask).sum(),
        "objects": (present * mask).sum(),
    }


def figures(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Shares ``objectness`` and ``right`` of all crops, ``accuracy`` and mean ``iou`` of those with an object."""
    count, objects = float(sums["count"]), max(float(sums["objects"]), 1.0)
    found = {name: float(sums[name]) / count for name in ("objectness", "right", "loss") if name in sums}
    return {**found, "accuracy": float(sums["correct"]) / objects, "iou": float(sums["iou"]) / objects}


def describe(prediction: Prediction, classes: Sequence[str], most: int | None) -> dict[str, Any]:
    """Objectness, likeliest classes, and the box, xyxy in the pixels of the prediction."""
    return {
        "objectness": round(float(prediction["objectness"]), 4),
        **localize.describe(prediction, classes, most),
    }


def draw(example: Example, prediction: Prediction, classes: Sequence[str]) -> Picture:
    """Crop with its predicted box, and the true one where the example has an object."""
    seen = np.asarray(example.get("box_mask", False)).any()
    truth = example if seen else {"image": example["image"]}
    picture = localize.draw(truth, prediction, classes)
    return picture._replace(title=f"{picture.title}\nobject {float(prediction['objectness']):.0%}")


def one_by_one(model: linen.Module, windows: Windows) -> Apply:
    """Numbers by cutting out every window; a row of windows at a time goes through the network as one batch."""

    def apply(variables: PyTree, images: Array) -> jax.Array:
        def row(cut: jax.Array) -> jax.Array:
            output, _ = model.apply(variables, cut.reshape(-1, *cut.shape[2:]), train=False)
            return output.reshape(*cut.shape[:2], -1)

        return jax.lax.map(row, windows.cut(images).swapaxes(0, 1)).swapaxes(0, 1)

    return apply


def in_one_pass(model: linen.Module) -> Apply:
    """Numbers by a network made fully convolutional, which sees the windows of an image all at once."""
    return lambda variables, images: model.apply(variables, images, train=False)[0]


def detector(
    apply: Apply, prepare: Prepare, windows: Windows, *, objectness: float, overlap: float, most: int = 50
) -> Callable[[PyTree, Array], dict[str, jax.Array]]:
    """Detection in pictures of one size: drops windows without an object, then boxes that overlap a better one.

    Args:
      objectness: a box of a window with less is dropped.
      overlap: IoU above which, of two boxes, the one with less objectness is dropped, whatever their classes.
      most: boxes in a picture, at most.

    Returns:
      Function (variables, uint8 [n, h, w, c]) → ``boxes`` [n, most, 4], xyxy in the picture, ``labels``, ``scores``
      (objectness), by falling score, and ``valid``, False where there is none.
    """

    def detect(variables: PyTree, images: Array) -> dict[str, jax.Array]:
        parts = []
        for level in windows.levels(images):
            found = Numbers.of(apply(variables, prepare(level.images)))
            boxes = windows.in_picture(localize.decode(found.codes, windows.side), level)
            values = boxes, found.logits.argmax(-1), jax.nn.sigmoid(found.objectness)
            parts.append([x.reshape(len(images), -1, *x.shape[3:]) for x in values])
        boxes, labels, scores = (jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        boxes = ops.clip(boxes, *images.shape[1:3])
        wanted = jnp.where(scores >= objectness, scores, -jnp.inf)
        kept = jax.vmap(lambda b, s: nms.nms(b, s, iou_threshold=overlap, max_outputs=most))(boxes, wanted)
        chosen = {"boxes": boxes, "labels": labels, "scores": scores}
        return {**{k: jax.vmap(lambda x, i: x[i])(x, kept.indices) for k, x in chosen.items()}, "valid": kept.valid}

    return detect
