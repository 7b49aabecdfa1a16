"""Non-maximum suppression: of overlapping boxes the best stays. Static shapes, for ``jax.jit`` and ``jax.vmap``.

Boxes are ``[n, 4]`` xyxy, scores ``[n]``. Boxes with the score -inf are never taken, so that padding can be marked.
Results have ``max_outputs`` places, by falling score, of which only those where ``valid`` is True hold a box. Equal
scores keep their order.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cnnjax.ops import boxes as box_ops
from cnnjax.types import Array

Suppress = Callable[[jax.Array, jax.Array], jax.Array]


class Kept(NamedTuple):
    """Boxes that are left: places among the input [k], and where there are such, bool [k]."""

    indices: jax.Array
    valid: jax.Array


class Rescored(NamedTuple):
    """Boxes that are left, as of `Kept`, with their lowered scores [k]."""

    indices: jax.Array
    valid: jax.Array
    scores: jax.Array


@functools.partial(jax.jit, static_argnames="max_outputs")
def nms(boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int, labels: Array | None = None) -> Kept:
    """Greedy suppression: takes the best box, drops those that overlap it with an IoU above the threshold, and so on.

    Equal to torchvision's ``nms``, and with ``labels`` [n] to its ``batched_nms``: boxes of other classes stay.
    """

    def suppress(left: jax.Array, overlap: jax.Array) -> jax.Array:
        return jnp.where(overlap > iou_threshold, -jnp.inf, left)

    return Kept(*_greedy(boxes, scores, labels, max_outputs, suppress)[:2])


@functools.partial(jax.jit, static_argnames="max_outputs")
def soft_nms(
    boxes: Array,
    scores: Array,
    *,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_outputs: int,
    labels: Array | None = None,
) -> Rescored:
    """Gaussian soft suppression (Bodla et al. 2017, eq. 3): scores of overlapping boxes are lowered, none is dropped.

    Each box that is taken multiplies the scores of the others by exp(-IoU² / ``sigma``); boxes whose score falls to
    ``score_threshold`` or below are not taken.
    """

    def suppress(left: jax.Array, overlap: jax.Array) -> jax.Array:
        lowered = left * jnp.exp(-jnp.square(overlap) / sigma)
        return jnp.where(lowered > score_threshold, lowered, -jnp.inf)

    scores = jnp.where(jnp.asarray(scores) > score_threshold, scores, -jnp.inf)
    return Rescored(*_greedy(boxes, scores, labels, max_outputs, suppress))


@functools.partial(jax.jit, static_argnames="max_outputs")
def matrix_nms(
    boxes: Array, scores: Array, *, sigma: float = 2.0, max_outputs: int, labels: Array | None = None
) -> Rescored:
    """Matrix suppression (Wang et al. 2020, SOLOv2, sec. 3.3): all scores are lowered at once, without a loop.

    A box's score is multiplied by the least of exp(-``sigma`` · (IoU² − worst²)) over the better boxes, worst being the
    better box's own largest IoU with one still better. It needs memory for n² values.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores, jnp.float32)
    order = jnp.argsort(-scores, stable=True)
    overlap = box_ops.iou(boxes[order], boxes[order])
    if labels is not None:
        ranked = jnp.asarray(labels)[order]
        overlap = jnp.where(ranked[:, None] == ranked, overlap, 0)
    better = jnp.triu(overlap, 1)  # [i, j]: box i is better than j
    worst = better.max(0)[:, None]
    decay = jnp.where(better > 0, jnp.exp(-sigma * (jnp.square(better) - jnp.square(worst))), 1).min(0)
    lowered, places = jax.lax.top_k(scores[order] * jnp.minimum(decay, 1), min(max_outputs, len(scores)))
    missing = max_outputs - len(places)
    places = jnp.pad(order[places], (0, missing))
    lowered = jnp.pad(lowered, (0, missing), constant_values=-jnp.inf)
    return Rescored(places, lowered > -jnp.inf, lowered)


def _greedy(boxes: Array, scores: Array, labels: Array | None, max_outputs: int, suppress: Suppress) -> tuple:
    """Indices, valid and scores of ``max_outputs`` boxes, the best first.

    Args:
      suppress: (scores of the boxes that are left, their IoU with the one that was taken) → lowered scores.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    chex.assert_shape(boxes, (len(scores), 4))
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if labels is not None:
        labels = jnp.asarray(labels)

    def take(step: jax.Array, carry: tuple) -> tuple:
        left, indices, found = carry
        best = left.argmax()
        score = left[best]
        overlap = box_ops.iou_paired(boxes[best], boxes)
        if labels is not None:
            overlap = jnp.where(labels == labels[best], overlap, 0)
        left = suppress(left, overlap).at[best].set(-jnp.inf)
        return left, indices.at[step].set(best), found.at[step].set(score)

    start = (scores, jnp.zeros(max_outputs, jnp.int32), jnp.full(max_outputs, -jnp.inf, scores.dtype))
    if not len(scores):
        return start[1], jnp.zeros(max_outputs, bool), start[2]
    _, indices, found = jax.lax.fori_loop(0, max_outputs, take, start)
    valid = found > -jnp.inf
    return jnp.where(valid, indices, 0), valid, found
