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
    radius = int(np.ceil(tolerance * np.hypot(*labels.shape)))
    labels = jnp.asarray(labels, jnp.int32)
    counted = (labels >= 0) & (labels < classes)
    own = {"predicted": jnp.where(counted, predicted, -1), "true": jnp.where(counted, labels, -1)}
    # Boundary pixels carry their class; all other pixels are of the class after the last, which is not counted.
    edges = {name: jnp.where(_is_edge(x) & counted, x, classes) for name, x in own.items()}
    near = {name: _near(_bits(x, classes), radius) for name, x in edges.items()}
    right = {
        "precise": jnp.where(_has_bit(near["true"], edges["predicted"]), edges["predicted"], classes),
        "recalled": jnp.where(_has_bit(near["predicted"], edges["true"]), edges["true"], classes),
    }
    counts = {name: jnp.bincount(x.ravel(), length=classes + 1)[:-1] for name, x in {**edges, **right}.items()}
    return {name: x.astype(jnp.int32) for name, x in counts.items()}


def _is_edge(labels: jax.Array) -> jax.Array:
    """Pixels of which one of the four neighbors has another label, bool [h, w]."""
    edge = jnp.zeros(labels.shape, bool)
    for axis in (0, 1):
        differ = jnp.diff(labels, axis=axis) != 0
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (1, 0), (0, 1)
        edge |= jnp.pad(differ, before) | jnp.pad(differ, after)
    return edge


def _bits(labels: jax.Array, classes: int) -> jax.Array:
    """Labels as bits, uint32 [h, w, ⌈classes / 32⌉], so that one operation serves 32 classes; none for ``classes``."""
    words = jnp.arange(-(-classes // 32))
    bit = jnp.uint32(1) << (labels % 32).astype(jnp.uint32)
    return jnp.where((labels[..., None] // 32 == words) & (labels < classes)[..., None], bit[..., None], jnp.uint32(0))


def _has_bit(bits: jax.Array, labels: jax.Array) -> jax.Array:
    """True where the bit of a pixel's label is set, bool [h, w]."""
    word = jnp.take_along_axis(bits, jnp.minimum(labels // 32, bits.shape[-1] - 1)[..., None], axis=-1)[..., 0]
    return ((word >> (labels % 32).astype(jnp.uint32)) & 1) > 0


def _near(bits: jax.Array, radius: int) -> jax.Array:
    """Bits of all pixels within ``radius``: a disk, row by row."""
    height, width = bits.shape[:2]
    padded = jnp.pad(bits, ((radius, radius), (radius, radius), (0, 0)))

    def moved(x: jax.Array, down: int, right: int) -> jax.Array:
        return x[radius + down : radius + down + height, radius + right : radius + right + width]

    rows = [bits]  # bits within 0, 1, … columns
    for reach in range(1, radius + 1):
        rows.append(rows[-1] | moved(padded, 0, reach) | moved(padded, 0, -reach))
    found = jnp.zeros_like(bits)
    for down in range(-radius, radius + 1):
        reach = int(np.sqrt(radius**2 - down**2))
        found |= moved(jnp.pad(rows[reach], ((radius, radius), (radius, radius), (0, 0))), down, 0)
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
