"""Classification with localization: one object in each image, its class and the box around it.

Batches have ``image`` (uint8 [n, s, s, 3]; float in training, as augmentation left it), ``boxes`` float32 [n, 1, 4],
xyxy in pixels, ``labels`` int32 [n, 1] and ``box_mask`` bool [n, 1]. The box head gives (cx, cy, √w, √h) as shares of
the image, as the chapter advises: an error of some pixels weighs more in a small box.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax import nn
from cnnjax.ops import boxes as ops
from cnnjax.tasks import Prepare
from cnnjax.tasks.classify import USUAL, cross_entropy, top
from cnnjax.types import Array, Batch, Example, Key, Picture, Prediction, PyTree, Rows, Sums, Task

OBJECTS = 1  # boxes in each image
BoxLoss = Literal["mse", "smooth_l1", "giou"]


def encode(boxes: Array, size: int) -> jax.Array:
    """Boxes [..., 4], xyxy in pixels of images of ``size`` × ``size`` → (cx, cy, √w, √h) as shares of the image."""
    shares = ops.xyxy_to_cxcywh(boxes) / size
    return jnp.concatenate([shares[..., :2], jnp.sqrt(shares[..., 2:])], axis=-1)


def decode(codes: Array, size: int) -> jax.Array:
    """Inverse of ``encode``; the sign of a root does not count, or a box without area would have no gradient."""
    sides = jnp.square(codes[..., 2:])
    return ops.cxcywh_to_xyxy(jnp.concatenate([codes[..., :2], sides], axis=-1) * size)


class Localizer(linen.Module):
    """Base under a class head and a box head of 4 units.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 and the base's endpoints with
    ``box [n, 4]``, coded. ``base`` is a model made with ``num_classes=None``. The class head sees the global average of
    the last feature map. So does the box head with ``box_features=None``, one dense layer as in the chapter. Averaging
    loses the place of the object. By default, therefore, the last feature map is reduced to ``box_features`` channels,
    and each of its positions predicts by 1×1 convolutions a box relative to itself and a weight; the box is the mean of
    these predictions, weighted by a softmax over the positions. All positions share the same kernels, so that a few
    hundred images suffice. The parameters are ``base/…``, ``head/…``, ``box_reduce/…``, ``box_weight/…`` and ``box/…``.
    """

    base: linen.Module
    num_classes: int
    box_features: int | None = 64
    dropout: float = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the base's input."""
        return self.base.image_shape

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        pooled = endpoints["pooled"]
        logits = nn.Head(self.num_classes, self.dropout, name="head")(pooled, train)
        # Kernels start at zero: with random ones over thousands of inputs the outputs would lie far outside the image.
        zeros = linen.initializers.zeros
        if self.box_features is None:
            box = linen.Dense(4, kernel_init=zeros, bias_init=_middle, name="box")(pooled)
            return logits, {**endpoints, "box": box.astype(jnp.float32)}
        last = endpoints[list(self.base.strides)[-1]]
        seen = nn.relu(nn.Conv(self.box_features, 1, name="box_reduce")(last))
        weight = linen.Dense(1, kernel_init=zeros, name="box_weight")(seen).astype(jnp.float32)
        box = linen.Dense(4, kernel_init=zeros, bias_init=_middle, name="box")(seen).astype(jnp.float32)
        box += _centers(*last.shape[1:3])
        return logits, {**endpoints, "box": (jax.nn.softmax(weight, axis=(1, 2)) * box).sum((1, 2))}


def _centers(height: int, width: int) -> np.ndarray:
    """(x, y, 0, 0) from the image's center to that of each position, as shares: float32 [height, width, 4]."""
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5 for n in (height, width))
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.zeros_like(x), np.zeros_like(x)], axis=-1)


def _middle(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Code of the box to start from: half the image's sides, in its middle."""
    return jnp.array([0.5, 0.5, 0.5**0.5, 0.5**0.5], dtype)


def box_losses(kind: BoxLoss, codes: Array, boxes: Array, size: int) -> jax.Array:
    """Loss [n] of coded boxes [n, 4] against boxes [n, 4] in pixels.

    "mse": mean squared error of the codes (the chapter); "smooth_l1": Huber's on the codes with δ = 0.1 (Girshick 2015,
    eq. 3, scaled to shares of the image); "giou": 1 − GIoU (Rezatofighi et al. 2019, algorithm 1).
    """
    if kind == "giou":
        return 1 - ops.giou_paired(decode(codes, size), boxes)
    errors = codes - encode(boxes, size)
    return (jnp.square(errors) if kind == "mse" else optax.huber_loss(errors, delta=0.1) / 0.1).mean(-1)


def network(create: Callable[..., linen.Module], classes: Sequence[str], **head: Any) -> Localizer:
    """Base without its top under both heads; ``head`` are fields of ``Localizer``."""
    return Localizer(create(num_classes=None), len(classes), **head)


def task(
    model: linen.Module,
    prepare: Prepare,
    classes: Sequence[str],
    *,
    box_loss: BoxLoss = "mse",
    weights: tuple[float, float] = (0.8, 0.2),
) -> Task:
    """Classification and localization by a ``Localizer``.

    Args:
      box_loss: see ``box_losses``.
      weights: weights of cross-entropy and box loss, 0.8 and 0.2 in the chapter. An example adds only its class
        loss where augmentation has moved its box out of the image.
    """

    def loss_fn(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        state_names = [name for name in variables if name != "params"]
        (logits, endpoints), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        codes, size = endpoints["box"], batch["image"].shape[1]
        class_loss = cross_entropy(logits, batch["labels"][:, 0])
        box = box_losses(box_loss, codes, batch["boxes"][:, 0], size)
        total = weights[0] * class_loss + weights[1] * jnp.where(batch["box_mask"][:, 0], box, 0)
        found, _ = compare(logits, codes, batch, jnp.ones_like(box), size)
        return total.mean(), (state, {**found, "loss": total.sum()})

    def eval_fn(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        logits, endpoints = model.apply(variables, prepare(batch["image"]), train=False)
        return compare(logits, endpoints["box"], batch, batch["example_mask"], batch["image"].shape[1])

    def predict(variables: PyTree, images: Array) -> dict[str, Array]:
        logits, endpoints = model.apply(variables, prepare(images), train=False)
        size = images.shape[1]
        boxes = ops.clip(decode(endpoints["box"], size), size, size)
        return {"probabilities": jax.nn.softmax(logits), "boxes": boxes}

    return Task(
        loss_fn=loss_fn,
        eval_fn=eval_fn,
        figures=lambda sums, rows: figures(sums, classes),
        predict=predict,
        describe=lambda prediction, most: describe(prediction, classes, most),
        draw=lambda example, prediction: draw(example, prediction, classes),
        best="localization_accuracy",
    )


def compare(logits: Array, codes: Array, batch: Batch, mask: Array, size: int) -> tuple[Sums, Rows]:
    """Sums and rows of a batch.

    Args:
      logits: [n, classes].
      codes: coded boxes [n, 4].
      mask: [n], 1 where the example counts.
      size: height and width of the images in pixels.

    Returns:
      Sums ``correct``, ``iou``, ``localized`` (right class and IoU ≥ 0.5), ``count`` and, by class [classes],
      ``class_iou`` and ``class_count``; rows ``label``, ``predicted``, ``confidence``, ``iou``.
    """
    label = batch["labels"][:, 0]
    overlap = ops.iou_paired(decode(codes, size), batch["boxes"][:, 0])
    iou = overlap * mask
    right = (logits.argmax(-1) == label) * mask
    of_class = jax.nn.one_hot(label, logits.shape[-1]) * mask[:, None]
    sums = {
        "correct": right.sum(),
        "iou": iou.sum(),
        "localized": (right * (iou >= 0.5)).sum(),
        "count": mask.sum(),
        "class_iou": iou @ of_class,
        "class_count": of_class.sum(0),
    }
    confidence = jax.nn.softmax(logits).max(-1)
    return sums, {"label": label, "predicted": logits.argmax(-1), "confidence": confidence, "iou": overlap}


def figures(sums: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """``accuracy``, mean ``iou``, ``localization_accuracy`` (right class and IoU ≥ 0.5), ``iou/NAME`` of each class
    that occurs, and in training ``loss``."""
    names = {"accuracy": "correct", "iou": "iou", "localization_accuracy": "localized", "loss": "loss"}
    count = float(sums["count"])
    found = {name: float(sums[key]) / count for name, key in names.items() if key in sums}
    by_class = zip(classes, sums["class_iou"], sums["class_count"], strict=True)
    return {**found, **{f"iou/{name}": float(iou / n) for name, iou, n in by_class if n}}


def describe(prediction: Prediction, classes: Sequence[str], most: int | None) -> dict[str, Any]:
    """Likeliest classes, and the box, xyxy in the pixels of the prediction."""
    box = [round(float(x), 1) for x in np.reshape(prediction["boxes"], 4)]
    return {"predictions": top(prediction["probabilities"], classes, most or USUAL), "box": box}


def draw(example: Example, prediction: Prediction, classes: Sequence[str]) -> Picture:
    """Image with the predicted box, and the true one where the example has it."""
    probabilities = np.asarray(prediction["probabilities"])
    best = int(probabilities.argmax())
    boxes, names, colors = [np.reshape(prediction["boxes"], 4)], [classes[best]], [1 + best]
    if "boxes" in example:
        truth = classes[int(example["labels"][0])]
        boxes, names, colors = [example["boxes"][0], *boxes], [f"true {truth}", *names], [0, *colors]
    title = f"{classes[best]} {probabilities[best]:.0%}"
    return Picture(example["image"], title, np.stack(boxes), tuple(names), tuple(colors))
