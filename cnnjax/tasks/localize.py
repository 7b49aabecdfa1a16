"""Classification with localization: one object in each image, what it is and the box around it.

Batches hold ``image`` (uint8 [n, s, s, 3], float once augmented), ``label`` int32 [n] and ``box`` float32 [n, 4], xyxy
in pixels. The box head gives (cx, cy, √w, √h) in shares of the image, as the chapter advises: an error of so many
pixels weighs more in a small box.
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
from cnnjax.tasks.classify import Preprocess, cross_entropy
from cnnjax.types import Array, Batch, Key, PyTree

BoxLoss = Literal["mse", "smooth_l1", "giou"]


def encode(boxes: Array, size: int) -> jax.Array:
    """xyxy in pixels [..., 4] of images of ``size`` × ``size`` → (cx, cy, √w, √h) in shares of it."""
    shares = ops.xyxy_to_cxcywh(boxes) / size
    return jnp.concatenate([shares[..., :2], jnp.sqrt(shares[..., 2:])], axis=-1)


def decode(codes: Array, size: int) -> jax.Array:
    """The inverse of ``encode``; roots count without their sign, so that no box stays empty for want of a gradient."""
    sides = jnp.square(codes[..., 2:])
    return ops.cxcywh_to_xyxy(jnp.concatenate([codes[..., :2], sides], axis=-1) * size)


class Localizer(linen.Module):
    """``base``, a model made with ``num_classes=None``, under a class head and a box head of 4 units.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 and the base's endpoints with
    ``box [n, 4]``, coded. The class head sees the globally averaged last maps. So does the box head with
    ``box_maps=None``, one dense layer as in the chapter. Averaging forgets where things are, so by default each place
    of the last map, reduced to ``box_maps``, says by 1×1 convolutions where the box is as seen from it, and how much
    that counts (a softmax over the places); the box is the weighted mean. What is learned of an object in one place so
    serves in all others, which a few hundred photos need. The parameters are ``base/…``, ``head/…``, ``box_reduce/…``,
    ``box_weight/…`` and ``box/…``.
    """

    base: linen.Module
    num_classes: int
    box_maps: int | None = 64
    dropout: float = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The base's."""
        return self.base.image_shape

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        pooled = endpoints["pooled"]
        logits = nn.Head(self.num_classes, self.dropout, name="head")(pooled, train)
        # From zero: what a fresh kernel makes of thousands of inputs sends boxes out of the image.
        zeros = linen.initializers.zeros
        if self.box_maps is None:
            box = linen.Dense(4, kernel_init=zeros, bias_init=_middle, name="box")(pooled)
            return logits, {**endpoints, "box": box.astype(jnp.float32)}
        last = [x for x in endpoints.values() if x.ndim == 4][-1]
        seen = nn.relu(nn.Conv(self.box_maps, 1, name="box_reduce")(last))
        weight = linen.Dense(1, kernel_init=zeros, name="box_weight")(seen).astype(jnp.float32)
        box = linen.Dense(4, kernel_init=zeros, bias_init=_middle, name="box")(seen).astype(jnp.float32)
        box += _from_the_middle(*last.shape[1:3])
        return logits, {**endpoints, "box": (jax.nn.softmax(weight, axis=(1, 2)) * box).sum((1, 2))}


def _from_the_middle(height: int, width: int) -> np.ndarray:
    """(x, y, 0, 0) of the centre of each place, in shares of the image, less the middle: float32 [height, width, 4]."""
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5 for n in (height, width))
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.zeros_like(x), np.zeros_like(x)], axis=-1)


def _middle(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """The box of half the image's sides in its middle, to start from."""
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


def sums(logits: Array, codes: Array, batch: Batch, mask: Array, size: int) -> dict[str, Array]:
    """Sums over the examples: ``correct``, ``iou``, ``both`` (right class and IoU ≥ 0.5), ``count``; by class [classes]
    ``class_iou`` and ``class_count``."""
    iou = ops.iou_paired(decode(codes, size), batch["box"]) * mask
    right = (logits.argmax(-1) == batch["label"]) * mask
    of_class = jax.nn.one_hot(batch["label"], logits.shape[-1]) * mask[:, None]
    return {
        "correct": right.sum(),
        "iou": iou.sum(),
        "both": (right * (iou >= 0.5)).sum(),
        "count": mask.sum(),
        "class_iou": iou @ of_class,
        "class_count": of_class.sum(0),
    }


def loss_fn(model: Localizer, size: int, kind: BoxLoss = "mse", weights: tuple[float, float] = (0.8, 0.2)) -> Callable:
    """The training loss of ``train.Plan``: ``weights`` of cross-entropy and box loss, 0.8 and 0.2 in the chapter.

    Examples whose box augmentation has moved out of the image (``valid`` 0) count for the class only.
    """

    def compute(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Any]]:
        state_names = [name for name in variables if name != "params"]
        (logits, endpoints), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        classes, boxes = cross_entropy(logits, batch["label"]), box_losses(kind, endpoints["box"], batch["box"], size)
        valid = batch.get("valid", jnp.ones_like(boxes))
        total = weights[0] * classes + weights[1] * jnp.where(valid > 0, boxes, 0)
        found = sums(logits, endpoints["box"], batch, jnp.ones_like(boxes), size)
        return total.mean(), (state, {**found, "loss": total.sum()})

    return compute


def predict_fn(model: linen.Module, preprocess: Preprocess, size: int) -> Callable:
    """(variables, batch with uint8 images) → probabilities float32 [n, classes] and boxes [n, 4] in pixels.

    ``model`` is a ``Localizer``."""

    def compute(variables: PyTree, batch: Batch) -> tuple[Array, Array]:
        logits, endpoints = model.apply(variables, preprocess(batch["image"]), train=False)
        return jax.nn.softmax(logits), ops.clip(decode(endpoints["box"], size), size, size)

    return compute


def eval_fn(model: Localizer, preprocess: Preprocess, size: int) -> Callable:
    """(variables, batch with uint8 images and mask) → ``sums``."""

    def compute(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits, endpoints = model.apply(variables, preprocess(batch["image"]), train=False)
        return sums(logits, endpoints["box"], batch, batch["mask"], size)

    return compute


def figures(totals: Mapping[str, np.ndarray], classes: Sequence[str], prefix: str = "") -> dict[str, float]:
    """``{prefix}accuracy``, ``{prefix}iou`` (mean), ``{prefix}both`` and the mean IoU of each class, in shares of 1."""
    count = float(totals["count"])
    found = {"accuracy": totals["correct"] / count, "iou": totals["iou"] / count, "both": totals["both"] / count}
    by_class = {
        f"iou/{name}": iou / max(n, 1)
        for name, iou, n in zip(classes, totals["class_iou"], totals["class_count"], strict=True)
    }
    return {prefix + name: float(value) for name, value in {**found, **by_class}.items()}
