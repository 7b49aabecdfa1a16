"""Metrics of semantic segmentation: counts of pixels that are added up over images and divided last.

Labels are integers [h, w]; pixels whose true label is no class (255, or any from ``classes`` on) do not count, so
padding counts nowhere. Sums are exact: they do not depend on the batch size or on how images are shared out.
"""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array

TOLERANCE = 0.0075  # of the boundary score, as a share of the image's diagonal (Csurka et al. 2013, sec. 3)


def confusion(predicted: Array, labels: Array, classes: int) -> jax.Array:
    """Confusion matrix of an image's pixels, int32 [classes, classes]: by true class (row) and predicted one (column).

    Args:
      predicted: int [h, w], in 0 … classes − 1.
      labels: int [h, w].
    """
    chex.assert_equal_shape([predicted, labels])
    labels = jnp.asarray(labels, jnp.int32)
    counted = (labels >= 0) & (labels < classes)
    cells = jnp.where(counted, labels * classes + predicted, classes**2)  # the last one is dropped
    return jnp.bincount(cells.ravel(), length=classes**2 + 1)[:-1].reshape(classes, classes).astype(jnp.int32)


def boundary(predicted: Array, labels: Array, classes: int, tolerance: float = TOLERANCE) -> dict[str, jax.Array]:
    """Counts for the boundary F1 score of each class in one image (Csurka, Larlus & Perronnin 2013, sec. 3).

    A pixel is on the boundary of its class if one of its four neighbors has another label. It is right if a pixel of
    the other boundary lies within ``tolerance`` times the diagonal, rounded up to whole pixels.

    Returns:
      int32 [classes] each: ``predicted`` and ``true``, pixels on the boundaries, ``precise`` and ``recalled``, those
      that are right.
    """
    chex.assert_equal_shape([predicted, labels])
    height, width = labels.shape
    radius = int(np.ceil(tolerance * np.hypot(height, width)))
    labels = jnp.asarray(labels, jnp.int32)
    counted = (labels >= 0) & (labels < classes)
    edges = {
        "predicted": _edges(jnp.where(counted, predicted, -1), classes),
        "true": _edges(jnp.where(counted, labels, -1), classes),
    }
    near = {name: _near(edge, radius) for name, edge in edges.items()}
    right = {"precise": edges["predicted"] & near["true"], "recalled": edges["true"] & near["predicted"]}
    return {name: x.sum((0, 1), dtype=jnp.int32) for name, x in {**edges, **right}.items()}


def _edges(labels: jax.Array, classes: int) -> jax.Array:
    """Boundaries, bool [h, w, classes]; labels below 0 are no class."""
    edge = jnp.zeros(labels.shape, bool)
    for axis in (0, 1):
        differ = jnp.diff(labels, axis=axis) != 0
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (1, 0), (0, 1)
        edge |= jnp.pad(differ, before) | jnp.pad(differ, after)
    return edge[..., None] & (labels[..., None] == jnp.arange(classes))


def _near(mask: jax.Array, radius: int) -> jax.Array:
    """Pixels within ``radius`` of one of the mask, bool [h, w, c]: rows of a disk, each a maximum over columns."""
    padded = jnp.pad(mask, ((radius, radius), (radius, radius), (0, 0)))
    height, width = mask.shape[:2]
    found = jnp.zeros(mask.shape, bool)
    for down in range(-radius, radius + 1):
        reach = int(np.sqrt(radius**2 - down**2))
        rows = padded[radius + down : radius + down + height, radius - reach : radius + reach + width]
        found |= jax.lax.reduce_window(rows, False, jax.lax.bitwise_or, (1, 2 * reach + 1, 1), (1, 1, 1), "VALID")
    return found


def figures(totals: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Figures from added counts: ``confusion``, and those of ``boundary`` where they are there.

    ``miou`` is the mean of ``iou/NAME`` over the classes that occur in labels or predictions, ``pixel_accuracy`` the
    share of right pixels, ``mean_accuracy`` the mean over true classes of theirs, ``frequency_iou`` the IoU weighted by
    the classes' pixels (Long et al. 2015, sec. 5); ``boundary_f1`` the mean F1 over the classes that have boundaries.
    """
    matrix = np.asarray(totals["confusion"], np.float64)
    chex.assert_shape(matrix, (len(classes),) * 2)
    right, true, found = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    either = true + found - right
    iou = right[either > 0] / either[either > 0]
    total = max(true.sum(), 1)
    result = {
        "miou": float(iou.mean()) if iou.size else 0.0,
        "pixel_accuracy": float(right.sum() / total),
        "mean_accuracy": float((right[true > 0] / true[true > 0]).mean()) if true.any() else 0.0,
        "frequency_iou": float((true[either > 0] * iou).sum() / total),
        **{f"iou/{classes[k]}": float(right[k] / either[k]) for k in np.flatnonzero(either).tolist()},
    }
    if "precise" in totals:
        counts = {name: np.asarray(totals[name], np.float64) for name in ("precise", "predicted", "recalled", "true")}
        both = counts["predicted"] + counts["true"]
        precision = counts["precise"] / np.maximum(counts["predicted"], 1)
        recall = counts["recalled"] / np.maximum(counts["true"], 1)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        result["boundary_f1"] = float(f1[both > 0].mean()) if both.any() else 0.0
    return result


def median_frequency(pixels: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Class weights: the median frequency over each class's own, float32 [classes]; 0 for a class without pixels.

    Source: Eigen & Fergus 2015, sec. 6.3.2; SegNet.

    Args:
      pixels: [classes], pixels of each class in all images.
      present: [classes], pixels of all the images that show it.
    """
    frequency = pixels / np.maximum(present, 1)
    occurs = pixels > 0
    weights = np.zeros(len(pixels), np.float32)
    weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return weights
