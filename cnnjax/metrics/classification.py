"""Metrics of classification: masked sums over examples, divided last, so that the batch size does not matter."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array


def sums(losses: Array, logits: Array, labels: Array, mask: Array | None = None) -> dict[str, Array]:
    """Sums over the examples of one batch.

    Args:
      losses: [n], one per example.
      logits: [n, classes].
      labels: int [n].
      mask: [n], 1 where the example counts and 0 where it does not; None: all count.

    Returns:
      The scalars ``loss``, ``correct``, ``correct_top5`` (where there are more than 5 classes) and ``count``.
    """
    chex.assert_rank(logits, 2)
    chex.assert_shape([losses, labels], logits.shape[:1])
    mask = jnp.ones(labels.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    chex.assert_equal_shape([mask, labels])
    rank = ranks(logits, labels)
    counted = {"correct": 1, "correct_top5": 5} if logits.shape[-1] > 5 else {"correct": 1}
    hits = {name: ((rank < k) * mask).sum() for name, k in counted.items()}
    # where instead of a product: a row that only fills the batch may have an infinite loss, and inf · 0 is nan.
    return {"loss": jnp.where(mask > 0, losses, 0).sum(), **hits, "count": mask.sum()}


def ranks(logits: Array, labels: Array) -> Array:
    """Number of classes that score higher than the true one, int32 [n]; below k, the true one is among the top k.

    Among classes with equal scores the first counts as the higher.

    Args:
      logits: [n, classes].
      labels: int [n].
    """
    chex.assert_rank(logits, 2)
    chex.assert_shape(labels, logits.shape[:1])
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    return ((logits > true) | ((logits == true) & before)).sum(-1)


def confusion(logits: Array, labels: Array, mask: Array) -> Array:
    """Confusion matrix, int32 [classes, classes]: counts by true class (row) and predicted class (column).

    Args:
      logits: [n, classes].
      labels: int [n].
      mask: [n], 1 or True where the example counts.
    """
    chex.assert_rank(logits, 2)
    chex.assert_shape([labels, mask], logits.shape[:1])
    classes = logits.shape[-1]
    cells = labels * classes + logits.argmax(-1)
    return jax.ops.segment_sum(mask.astype(jnp.int32), cells, classes * classes).reshape(classes, classes)


def figures(totals: Mapping[str, Array], prefix: str = "") -> dict[str, float]:
    """Mean ``{prefix}loss``, and ``{prefix}accuracy`` and ``{prefix}top5`` (fractions of 1), from added ``sums``."""
    names = {"loss": "loss", "correct": "accuracy", "correct_top5": "top5"}
    count = float(totals["count"])
    return {prefix + name: float(totals[key]) / count for key, name in names.items() if key in totals}


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, object]]:
    """Precision, recall and support of each class, from its confusion matrix [classes, classes].

    Precision is nan for a class that was never predicted, recall for one that never occurs.
    """
    chex.assert_shape(matrix, (len(classes), len(classes)))
    right, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, right / support
    rows = zip(classes, precision, recall, support, strict=True)
    return [{"class": c, "precision": float(p), "recall": float(r), "images": int(n)} for c, p, r, n in rows]


class Bin(NamedTuple):
    """Predictions of about equal confidence.

    Attributes:
      size: number of predictions.
      confidence: their mean confidence.
      accuracy: share of them that is right.
    """

    size: int
    confidence: float
    accuracy: float


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> list[Bin]:
    """Predictions in bins of equal width by confidence; empty bins are left out.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    Args:
      confidence: [n], probability of the likeliest class.
      right: bool [n], True where that class is the true one.
      bins: number of bins from 0 to 1.
    """
    chex.assert_rank(confidence, 1)
    chex.assert_equal_shape([confidence, right])
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    chosen = [which == i for i in range(bins)]
    return [Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in chosen if m.any()]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean of |accuracy − confidence| over predictions (Guo et al. 2017, eq. 3)."""
    return sum(b.size * abs(b.accuracy - b.confidence) for b in bins) / sum(b.size for b in bins)


def top_figures(rows: Mapping[str, np.ndarray]) -> dict[str, float | int]:
    """Exact counts of images that are right at first, and in the first five places, their shares, and the mean loss.

    Args:
      rows: ``rank`` of the true class, 0 the first, and ``loss``, of every image.
    """
    count, rank = len(rows["rank"]), rows["rank"]
    correct, correct5 = int((rank < 1).sum()), int((rank < 5).sum())
    return {
        "top1": correct / count,
        "top5": correct5 / count,
        "count": count,
        "top1_correct": correct,
        "top5_correct": correct5,
        "loss": float(rows["loss"].mean(dtype=np.float64)),
    }


def confused(rows: Mapping[str, np.ndarray]) -> list[tuple[int, int, int]]:
    """(true class, predicted class, number of images) of rows ``label``, ``predicted``, the most images first."""
    cells = Counter(zip(rows["label"].tolist(), rows["predicted"].tolist(), strict=True))
    return sorted(((true, predicted, n) for (true, predicted), n in cells.items()), key=lambda row: (-row[2], *row))
