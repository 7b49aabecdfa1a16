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

BLOCK = 256  # boxes compared at once in nms
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

    Boxes are taken by falling score in blocks of ``BLOCK``: each is compared with those already kept, then within
    itself, until ``max_outputs`` are found; so time grows with the outputs more than with the boxes.
    """
    boxes, scores, labels = _inputs(boxes, scores, labels)
    count = len(scores)
    blocks = -(-count // BLOCK)
    order = jnp.argsort(-scores, stable=True)
    padded = jnp.pad(order, (0, blocks * BLOCK - count), mode="edge") if count else order
    ranked = jnp.where(jnp.arange(blocks * BLOCK) < count, scores[padded], -jnp.inf)

    def overlaps(a: jax.Array, b: jax.Array) -> jax.Array:
        """[i, j]: index a[i] suppresses index b[j] if it is kept."""
        found = box_ops.iou(boxes[a], boxes[b]) > iou_threshold
        return found if labels is None else found & (labels[a][:, None] == labels[b])

    def more(carry: tuple) -> jax.Array:
        block, found, _ = carry
        best = ranked[jnp.minimum(block * BLOCK, len(ranked) - 1)]
        return (block < blocks) & (found < max_outputs) & (best > -jnp.inf)

    def take(carry: tuple) -> tuple:
        block, found, kept = carry
        places = jax.lax.dynamic_slice(padded, (block * BLOCK,), (BLOCK,))
        open_ = jax.lax.dynamic_slice(ranked, (block * BLOCK,), (BLOCK,)) > -jnp.inf
        real = jnp.arange(max_outputs) < found
        open_ &= ~(overlaps(kept, places) & real[:, None]).any(0)
        alive = _first_of(jnp.triu(overlaps(places, places), 1), open_)
        where = jnp.where(alive, found + jnp.cumsum(alive) - 1, max_outputs)
        return block + 1, found + alive.sum(), kept.at[where].set(places, mode="drop")

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros(max_outputs, jnp.int32))
    found, kept = jax.lax.while_loop(more, take, start)[1:] if count else start[1:]
    return Kept(kept, jnp.arange(max_outputs) < found)


def _first_of(suppresses: jax.Array, open_: jax.Array) -> jax.Array:
    """Greedy choice within a block, bool [n]: what no earlier choice suppresses.

    Args:
      suppresses: [i, j], True only for i < j.
      open_: [n], False for what cannot be chosen.
    """

    # The greedy choice is the one fixed point; each step settles at least one more in every chain of overlaps.
    def step(carry: tuple) -> tuple:
        chosen, _ = carry
        return open_ & ~(suppresses & chosen[:, None]).any(0), chosen

    return jax.lax.while_loop(lambda carry: (carry[0] != carry[1]).any(), step, step((open_, open_)))[0]


class Detections(NamedTuple):
    """Boxes with one class each, by falling score: xyxy [k, 4], [k], int32 [k], and where there are such, bool [k]."""

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array


@functools.partial(jax.jit, static_argnames=("max_outputs", "candidates"))
def detections(
    boxes: Array,
    scores: Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_outputs: int,
    candidates: int = 4096,
) -> Detections:
    """Detections of one image: every class of every box above the score threshold, greedily suppressed by class.

    Args:
      boxes: [k, 4].
      scores: [k, classes].
      candidates: pairs of box and class, the best ones, that take part.

    Returns:
      Detections with ``max_outputs`` places; those that are not valid hold zeros.
    """
    chex.assert_shape(boxes, (len(scores), 4))
    classes = scores.shape[1]
    flat = jnp.where(scores > score_threshold, scores, -jnp.inf).reshape(-1)
    best, places = jax.lax.top_k(flat, min(candidates, len(flat)))
    chosen, labels = jnp.asarray(boxes)[places // classes], places % classes
    kept = nms(chosen, best, iou_threshold=iou_threshold, max_outputs=max_outputs, labels=labels)
    valid, at = kept.valid, kept.indices
    return Detections(
        jnp.where(valid[:, None], chosen[at], 0), jnp.where(valid, best[at], 0), jnp.where(valid, labels[at], 0), valid
    )


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


def _inputs(boxes: Array, scores: Array, labels: Array | None) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    chex.assert_shape(boxes, (len(scores), 4))
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return boxes, scores, None if labels is None else jnp.asarray(labels)


def _greedy(boxes: Array, scores: Array, labels: Array | None, max_outputs: int, suppress: Suppress) -> tuple:
    """Indices, valid and scores of ``max_outputs`` boxes, the best first.

    Args:
      suppress: (scores of the boxes that are left, their IoU with the one that was taken) → lowered scores.
    """
    boxes, scores, labels = _inputs(boxes, scores, labels)

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
