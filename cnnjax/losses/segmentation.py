"""Losses of one image's pixels for semantic segmentation; ``jax.vmap`` makes them for a batch.

``logits [h, w, classes]`` float, ``labels [h, w]`` int; pixels with the label ``IGNORED`` do not count.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cnnjax.types import IGNORED, Array


class PixelLoss(NamedTuple):
    """Sum of the pixels' losses, and the sum of their weights, by which the caller divides; float32 []."""

    total: jax.Array
    weight: jax.Array


def _targets(logits: Array, labels: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32 logits, labels that are classes, and a mask of the pixels that count."""
    chex.assert_rank(logits, 3)
    chex.assert_shape(labels, logits.shape[:2])
    labels = jnp.asarray(labels, jnp.int32)
    counted = labels != IGNORED
    return jnp.asarray(logits, jnp.float32), jnp.where(counted, labels, 0), counted


def pixel_cross_entropy(
    logits: Array, labels: Array, class_weights: Array | None = None, focus: float = 0.0
) -> PixelLoss:
    """Cross-entropy of each pixel in nats, weighted by its class, as torch's ``cross_entropy`` with ``ignore_index``.

    Args:
      class_weights: [classes]; None: 1.
      focus: γ of the focal loss, (1 − p)^γ times the cross-entropy, with p the probability of the true class (Lin et
        al. 2017, "Focal Loss for Dense Object Detection", eq. 4); 0: the cross-entropy.
    """
    logits, labels, counted = _targets(logits, labels)
    # A comparison in place of a gather, whose gradient is a scatter: 2.6 times faster on CPUs.
    true = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - true
    if focus:
        losses = losses * (1 - jnp.exp(-losses)) ** focus
    weights = counted.astype(jnp.float32)
    if class_weights is not None:
        weights = weights * jnp.asarray(class_weights, jnp.float32)[labels]
    return PixelLoss((losses * weights).sum(), weights.sum())


def dice(logits: Array, labels: Array, smooth: float = 1.0) -> jax.Array:
    """Dice loss: 1 − the mean over classes of ``(2 Σ p·y + s) / (Σ p + Σ y + s)``; classes absent from labels left out.

    Source: Milletari, Navab & Ahmadi 2016, "V-Net", sec. 3, without the squares. ``[]`` float32.
    """
    logits, labels, counted = _targets(logits, labels)
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes) * counted[..., None]
    found = jax.nn.softmax(logits) * counted[..., None]
    sizes = true.sum((0, 1))
    overlap = (2 * (found * true).sum((0, 1)) + smooth) / (found.sum((0, 1)) + sizes + smooth)
    present = sizes > 0
    return jnp.where(present, 1 - overlap, 0).sum() / jnp.maximum(present.sum(), 1)
