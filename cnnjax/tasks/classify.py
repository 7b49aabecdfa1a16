"""Image classification: loss, evaluation and prediction for any model that returns ``(logits, endpoints)``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen

from cnnjax.metrics import classification
from cnnjax.types import Array, Batch, Key, PyTree

Preprocess = Callable[[Array], Array]
ExampleLoss = Callable[[Array, Array], Array]


def unit(images: Array) -> Array:
    """uint8 → float32 in 0 … 1."""
    return images.astype(jnp.float32) / 255


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Softmax cross-entropy [n] in nats; ``targets`` are int [n] or distributions [n, classes]."""
    targets = targets if targets.ndim == 2 else jax.nn.one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets)


def smoothed(loss: ExampleLoss, epsilon: float) -> ExampleLoss:
    """Label smoothing (Szegedy et al. 2016, section 7): targets (1 − ε)·one_hot + ε/classes."""

    def smooth(logits: Array, targets: Array) -> Array:
        targets = targets if targets.ndim == 2 else jax.nn.one_hot(targets, logits.shape[-1])
        return loss(logits, optax.smooth_labels(targets, epsilon))

    return smooth if epsilon else loss


def loss_fn(model: linen.Module, loss: ExampleLoss = cross_entropy) -> Callable:
    """The training loss of ``train.Plan``.

    Args:
      loss: (logits [n, classes], targets) → [n].

    Returns:
      (variables, batch, key) → (mean loss, (new model state, sums)). ``batch["image"]`` is float, as augmentation left
      it; the loss is taken on ``batch["target"]`` where that exists (mixed labels), else on ``batch["label"]``.
    """

    def compute(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Any]]:
        state_names = [name for name in variables if name != "params"]
        (logits, _), state = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=state_names
        )
        losses = loss(logits, batch.get("target", batch["label"]))
        return losses.mean(), (state, classification.sums(losses, logits, batch["label"]))

    return compute


def eval_fn(model: linen.Module, preprocess: Preprocess, loss: ExampleLoss = cross_entropy) -> Callable:
    """(variables, batch with uint8 images and mask) → sums with the ``confusion`` matrix."""

    def compute(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits, _ = model.apply(variables, preprocess(batch["image"]), train=False)
        losses, mask = loss(logits, batch["label"]), batch["mask"]
        counts = classification.confusion(logits, batch["label"], mask)
        return {**classification.sums(losses, logits, batch["label"], mask), "confusion": counts}

    return compute


def predict_fn(model: linen.Module, preprocess: Preprocess) -> Callable:
    """(variables, batch with uint8 images) → probabilities float32 [n, classes]."""

    def compute(variables: PyTree, batch: Batch) -> Array:
        logits, _ = model.apply(variables, preprocess(batch["image"]), train=False)
        return jax.nn.softmax(logits)

    return compute
