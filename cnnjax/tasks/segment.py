"""Semantic segmentation: the class of every pixel, for any model of ``models.segmentation``.

Batches have ``image`` (uint8 [n, h, w, 3]; float in training, as augmentation left it) and ``segmentation`` (uint8
[n, h, w]), `types.IGNORED` where a pixel does not count, as on padding.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from cnnjax import losses, tasks
from cnnjax.metrics import segmentation
from cnnjax.ops import resize
from cnnjax.tasks import Prepare
from cnnjax.types import (
    IGNORED,
    Array,
    Batch,
    Example,
    Key,
    LossFn,
    Picture,
    Prediction,
    PyTree,
    Rows,
    Sums,
    Task,
)

OBJECTS = None  # objects in each image: any number
USUAL = 5  # classes that are named of an image


def network(create: Callable[..., linen.Module], classes: Sequence[str], **fields: Any) -> linen.Module:
    """Segmenter for ``classes``, made by ``create``; ``fields`` are more fields of it."""
    return create(num_classes=len(classes), **fields)


def task(
    model: Any,
    prepare: Prepare,
    classes: Sequence[str],
    *,
    class_weights: Array | None = None,
    focus: float = 0.0,
    dice: float = 0.0,
    mirrored: Sequence[int] = (),
    scales: Sequence[float] = (1.0,),
) -> Task:
    """Segmentation by ``model``, whose ``apply`` gives logits ``[n, h, w, classes]`` and endpoints.

    The loss is the mean over the pixels of a batch, each weighted by its class; that of auxiliary logits is added with
    ``model.aux_weights``.

    Args:
      class_weights: [classes], see `metrics.segmentation.median_frequency`; None: 1.
      focus: γ of the focal loss; 0: cross-entropy.
      dice: weight of the mean Dice loss of the images, which is added.
      mirrored: axes, 1 (top to bottom) and 2 (left to right), along which predictions also see mirror images.
      scales: factors of the size at which predictions see an image; probabilities are means over all that they see.
    """

    def probabilities(variables: PyTree, images: Array) -> jax.Array:
        shape, total = images.shape[1:3], jnp.float32(0)
        prepared, flips = prepare(images), tasks.mirrors(mirrored)
        for scale in scales:
            scaled = prepared if scale == 1 else resize.bilinear(prepared, [max(1, round(scale * s)) for s in shape])
            for flip in flips:
                logits, _ = model.apply(variables, jnp.flip(scaled, flip), train=False)
                total += jax.nn.softmax(resize.bilinear(jnp.flip(logits, flip), shape))
        return total / (len(scales) * len(flips))

    def predict(variables: PyTree, images: Array) -> dict[str, Array]:
        found = probabilities(variables, images)
        return {"segmentation": found.argmax(-1).astype(jnp.uint8), "confidence": found.max(-1)}

    def eval_fn(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        predicted = predict(variables, batch["image"])["segmentation"].astype(jnp.int32)
        labels = jnp.where(batch["example_mask"][:, None, None] > 0, batch["segmentation"], IGNORED)
        matrices = jax.vmap(partial(segmentation.confusion, classes=len(classes)))(predicted, labels)
        edges = jax.vmap(partial(segmentation.boundary, classes=len(classes)))(predicted, labels)
        sums = {name: x.sum(0) for name, x in {"confusion": matrices, **edges}.items()}
        return sums, {"confusion": matrices}

    return Task(
        loss_fn=_loss_fn(model, class_weights, focus, dice),
        eval_fn=eval_fn,
        figures=lambda sums, rows: figures(sums, classes),
        predict=predict,
        describe=lambda prediction, most: describe(prediction, classes, most or USUAL),
        draw=lambda example, prediction: draw(example, prediction, classes),
        best="miou",
    )


def _loss_fn(model: Any, class_weights: Array | None, focus: float, dice: float) -> LossFn:
    cross_entropy = jax.vmap(partial(losses.pixel_cross_entropy, class_weights=class_weights, focus=focus))

    def loss_of(logits: Array, labels: Array) -> tuple[jax.Array, losses.PixelLoss]:
        """Loss of a batch, and the sums of its pixels."""
        pixels = losses.PixelLoss(*(x.sum() for x in cross_entropy(logits, labels)))
        loss = pixels.total / jnp.maximum(pixels.weight, 1e-6)
        return loss + dice * jax.vmap(losses.dice)(logits, labels).mean() if dice else loss, pixels

    def compute(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        state_names = [name for name in variables if name != "params"]
        (logits, endpoints), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        labels = batch["segmentation"]
        loss, pixels = loss_of(logits, labels)
        for name, share in model.aux_weights.items():
            loss += share * loss_of(endpoints[name], labels)[0]
        counted = jnp.asarray(labels) != IGNORED
        right = ((logits.argmax(-1) == labels) & counted).sum()
        return loss, (state, {"loss": pixels.total, "weight": pixels.weight, "right": right, "count": counted.sum()})

    return compute


def figures(sums: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Mean ``loss`` and ``pixel_accuracy`` in training; in evaluation those of `metrics.segmentation.figures`."""
    if "confusion" in sums:
        return segmentation.figures(sums, classes)
    loss = float(sums["loss"]) / max(float(sums["weight"]), 1e-6)
    return {"loss": loss, "pixel_accuracy": float(sums["right"]) / max(float(sums["count"]), 1)}


def describe(prediction: Prediction, classes: Sequence[str], most: int) -> dict[str, Any]:
    """Largest classes of an image with their shares of its pixels."""
    labels = np.asarray(prediction["segmentation"])
    shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
    order = np.argsort(-shares, kind="stable")[:most]
    return {"classes": [{"name": classes[k], "share": round(float(shares[k]), 4)} for k in order if shares[k] > 0]}


def draw(example: Example, prediction: Prediction, classes: Sequence[str]) -> Picture:
    """Image under the predicted classes, with a legend; with its IoU where the example has the truth."""
    labels = np.asarray(prediction["segmentation"])
    title = ""
    if "segmentation" in example:
        matrix = np.asarray(segmentation.confusion(labels.astype(np.int32), example["segmentation"], len(classes)))
        title = f"mean IoU {segmentation.figures({'confusion': matrix}, classes)['miou']:.0%}"
    return Picture(example["image"], title, segmentation=labels, legend=tuple(classes))
