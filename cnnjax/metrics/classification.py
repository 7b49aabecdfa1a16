"""Classification: masked sums over examples, divided last, so that figures do not depend on the batch size."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array


def sums(losses: Array, logits: Array, labels: Array, mask: Array | None = None) -> dict[str, Array]:
    """Sums of one batch.

    Args:
      losses: [n], per example.
      logits: [n, classes].
      labels: int [n].
      mask: [n], 1 where the example counts.

    Returns:
      ``loss``, ``correct`` and ``correct_top5`` (where there are more than 5 classes), ``count``; scalars.
    """
    mask = jnp.ones(labels.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    # Rank of the true class = classes that score higher; ties count for the true class only if it comes first.
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & before)).sum(-1)
    counted = {"correct": 1, "correct_top5": 5} if logits.shape[-1] > 5 else {"correct": 1}
    hits = {name: ((rank < k) * mask).sum() for name, k in counted.items()}
    # where, not a product: a filled-up row may have an infinite loss, and inf · 0 is nan.
    return {"loss": jnp.where(mask > 0, losses, 0).sum(), **hits, "count": mask.sum()}


def confusion(logits: Array, labels: Array, mask: Array) -> Array:
    """Counts int32 [classes, classes]: row = true class, column = predicted class."""
    classes = logits.shape[-1]
    cells = labels * classes + logits.argmax(-1)
    return jax.ops.segment_sum(mask.astype(jnp.int32), cells, classes * classes).reshape(classes, classes)


def figures(totals: Mapping[str, Array], prefix: str = "") -> dict[str, float]:
    """Divides: ``{prefix}loss``, ``{prefix}accuracy`` and ``{prefix}top5`` (fractions of 1)."""
    names = {"loss": "loss", "correct": "accuracy", "correct_top5": "top5"}
    count = float(totals["count"])
    return {prefix + name: float(totals[key]) / count for key, name in names.items() if key in totals}


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, object]]:
    """Precision, recall and support of each class from a confusion matrix (nan where nothing was predicted)."""
    right, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, right / support
    rows = zip(classes, precision, recall, support, strict=True)
    return [{"class": c, "precision": float(p), "recall": float(r), "images": int(n)} for c, p, r, n in rows]
