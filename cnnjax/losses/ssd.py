"""The loss of SSD, of one image; ``jax.vmap`` makes it for a batch."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from cnnjax.ops import boxes as box_ops
from cnnjax.ops import matching
from cnnjax.types import Array


class MultiboxLoss(NamedTuple):
    """Sums over an image's default boxes, float32 [], not divided by anything; ``positives`` int32 [] is their number.

    ``parts`` are "class" and "box". The paper and torchvision divide both by the positives of all images: the loss of a
    batch is ``(Σ class + Σ box) / max(Σ positives, 1)``.
    """

    parts: dict[str, jax.Array]
    positives: jax.Array


def multibox_loss(
    outputs: Mapping[str, Array],
    default_boxes: Array,
    boxes: Array,
    labels: Array,
    box_mask: Array,
    ignore: Array | None = None,
    *,
    negatives: float = 3.0,
    variances: tuple[float, float] = (0.1, 0.2),
) -> MultiboxLoss:
    """Multibox loss with hard negatives (Liu et al. 2016, sec. 2.2, eq. 1 to 3), equal to torchvision's.

    Default boxes that match a true box (see ``ops.matching.match_ssd``) are positive. "box" is the smooth L1 loss of
    their four codes, "class" their cross-entropy and that of the negatives, which belong to the background, with the
    greatest loss, ``negatives`` for each positive. An image without positives has a loss of 0.

    Args:
      outputs: "classes" [k, c + 1] logits, the background's first, and "boxes" [k, 4] codes.
      default_boxes: [k, 4] xyxy in pixels.
      boxes: [m, 4] xyxy in pixels.
      labels: [m], int in 0 … c − 1.
      box_mask: [m], False on rows that only fill up.
      ignore: [m], True for objects that are neither to be found nor false alarms where they are (difficult, crowd):
        default boxes that overlap such a one by the IoU of a positive are no negatives.
      negatives: negatives for each positive.
      variances: of the codes, see ``ops.boxes.encode_ssd``.
    """
    logits, codes = (jnp.asarray(outputs[kind]) for kind in ("classes", "boxes"))
    chex.assert_shape([codes, default_boxes], (len(logits), 4))
    chex.assert_shape([labels, box_mask], (len(boxes),))
    real = jnp.asarray(box_mask, bool)
    left_out = jnp.zeros_like(real) if ignore is None else real & jnp.asarray(ignore, bool)
    match = matching.match_ssd(default_boxes, boxes, real & ~left_out)
    if len(boxes):
        truth = box_ops.encode_ssd(jnp.asarray(boxes)[match.truth], default_boxes, variances)
        targets = jnp.where(match.positive, jnp.asarray(labels)[match.truth] + 1, 0)
    else:
        truth, targets = jnp.zeros_like(codes), jnp.zeros(len(logits), jnp.int32)
    smooth = optax.huber_loss(codes.astype(jnp.float32), truth).sum(-1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    negative = ~match.positive & ~matching.match_ssd(default_boxes, boxes, left_out).positive
    chosen = match.positive | _hardest(jnp.where(negative, entropy, -jnp.inf), negatives * match.positive.sum())
    parts = {"class": jnp.where(chosen, entropy, 0).sum(), "box": jnp.where(match.positive, smooth, 0).sum()}
    return MultiboxLoss(parts, match.positive.sum())


def _hardest(losses: jax.Array, count: jax.Array) -> jax.Array:
    """True [k] at the ``count`` greatest losses that are not -inf."""
    rank = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(losses)))
    return (rank < count) & (losses > -jnp.inf)
