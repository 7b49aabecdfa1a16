"""Average precision of detections: COCO's figures, and Pascal VOC's.

Truths and predictions are lists with a dict of arrays for each image. Of truths: ``boxes`` [k, 4] xyxy in pixels,
``labels`` int [k] and, if there are such, ``crowd`` and ``difficult`` bool [k] and ``area`` [k] (else the boxes').
Crowds and difficult objects do not count: finding one is neither right nor wrong, and a crowd may be found many times.
Of predictions: ``boxes``, ``labels`` and ``scores`` [k].
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjax.types import UserError

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels
MOST = (1, 10, 100)  # detections of a class in an image that count


class _Truths(NamedTuple):
    """Objects of one class in an image."""

    boxes: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray


class _Found(NamedTuple):
    """Detections of one class in an image, the best first."""

    boxes: np.ndarray
    scores: np.ndarray


def coco_map(truths: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of COCO's challenge, equal to those of ``pycocotools.cocoeval`` (Lin et al. 2014).

    Returns:
      ``ap`` (mean over IoU 0.50 … 0.95), ``ap50``, ``ap75``; ``ap_small`` (area below 32²), ``ap_medium``, ``ap_large``
      (above 96²); ``ar1``, ``ar10``, ``ar100``: recall with so many detections of a class in an image. Means are over
      the classes with objects of that size; a figure without any is absent.

    Raises:
      UserError: lists or arrays that do not fit together, scores or boxes that are not finite.
    """
    curves = [
        _coco_curves([(truth, _Found(*(x[: MOST[-1]] for x in found))) for truth, found in images])
        for _, images in _by_class(truths, predictions)
    ]
    if not curves:
        return {}
    precision, recall = (np.stack(each) for each in zip(*curves, strict=True))
    figures = {
        "ap": precision[:, 0],
        "ap50": precision[:, 0, 0],
        "ap75": precision[:, 0, 5],
        **{f"ap_{name}": precision[:, i] for i, name in enumerate(AREAS) if name},
        **{f"ar{most}": recall[:, i] for i, most in enumerate(MOST)},
    }
    return {name: float(x[~np.isnan(x)].mean()) for name, x in figures.items() if not np.isnan(x).all()}


def voc_ap(
    truths: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    iou_threshold: float = 0.5,
    points: int | None = 11,
) -> dict[int, float]:
    """Average precision of each class that has objects, as Pascal VOC's development kit computes it.

    Args:
      points: number of recalls, evenly spaced, at which the precision is taken (VOC2007: 11); None: the area under the
        curve (from VOC2010 on).

    Raises:
      UserError: as `coco_map`.
    """
    return {
        label: _voc_mean(recall, precision, points)
        for label, (recall, precision, _) in voc_curves(truths, predictions, iou_threshold).items()
    }


class Curve(NamedTuple):
    """Precision and recall of a class with the detections down to each one, by falling score: each [d]."""

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


def voc_curves(
    truths: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], iou_threshold: float = 0.5
) -> dict[int, Curve]:
    """Precision–recall curve of each class that has objects, matched as Pascal VOC's development kit does.

    Raises:
      UserError: as `coco_map`.
    """
    curves = {}
    for label, images in _by_class(truths, predictions):
        matches = [_voc_match(*image, iou_threshold) for image in images]
        right, ignored, scores = (np.concatenate(each) for each in zip(*matches, strict=True))
        count = sum(int((~(truth.difficult | truth.crowd)).sum()) for truth, _ in images)
        if not count:
            continue
        order = np.argsort(-scores, kind="stable")
        right, wrong = right[order].cumsum(), (~right & ~ignored)[order].cumsum()
        curves[label] = Curve(right / count, right / np.maximum(right + wrong, 1), scores[order])
    return curves


def _voc_mean(recall: np.ndarray, precision: np.ndarray, points: int | None) -> float:
    if points is not None:
        at = np.linspace(0, 1, points)
        return float(np.mean([precision[recall >= each - 1e-12].max(initial=0) for each in at]))
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())


def _voc_match(truth: _Truths, found: _Found, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections that are right, and ignored, bool [d]; and their scores. Each looks at its best object alone."""
    right, ignored = np.zeros((2, len(found.scores)), bool)
    if len(truth.boxes):
        overlap, taken = _iou(found.boxes, truth), np.zeros(len(truth.boxes), bool)
        for d, best in enumerate(overlap.argmax(1)):
            if overlap[d, best] < threshold:
                continue
            ignored[d] = truth.difficult[best] or truth.crowd[best]
            right[d] = not ignored[d] and not taken[best]
            taken[best] = True
    return right, ignored, found.scores


def _coco_curves(images: Sequence[tuple[_Truths, _Found]]) -> tuple[np.ndarray, np.ndarray]:
    """Precision [area, IoU, recall] and recall [most detections, IoU] of a class; NaN where it has no object."""
    matches = [_coco_match(*image) for image in images]
    right, ignored = (np.concatenate(each, axis=-1) for each in zip(*matches, strict=True))
    scores = np.concatenate([found.scores for _, found in images])
    ranks = np.concatenate([np.arange(len(found.scores)) for _, found in images])
    order = np.argsort(-scores, kind="stable")
    right, ignored, ranks = right[..., order], ignored[..., order], ranks[order]
    counts = sum((~_ignored(truth)).sum(-1) for truth, _ in images)
    precision = np.full((len(AREAS), len(IOUS), len(RECALLS)), np.nan)
    recall = np.full((len(MOST), len(IOUS)), np.nan)
    for area, count in enumerate(counts):
        if count:
            precision[area], last = _curve(right[area], ignored[area], count)
            if area == 0:
                recall[-1] = last
                for i, most in enumerate(MOST[:-1]):
                    recall[i] = _curve(right[0][:, ranks < most], ignored[0][:, ranks < most], count)[1]
    return precision, recall


def _curve(right: np.ndarray, ignored: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision [IoU, recall] at `RECALLS`, the best at that recall or above, and the last recall [IoU]."""
    hits, misses = (right & ~ignored).cumsum(-1), (~right & ~ignored).cumsum(-1)
    recall, precision = hits / count, hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=-1)[:, ::-1]
    padded = np.pad(precision, ((0, 0), (0, 1)))
    curve = np.stack([x[np.searchsorted(r, RECALLS)] for x, r in zip(padded, recall, strict=True)])
    return curve, recall[:, -1] if right.shape[-1] else np.zeros(len(right))


def _ignored(truth: _Truths) -> np.ndarray:
    """Objects that do not count for each of `AREAS`: bool [area, k]."""
    small, large = np.array([*AREAS.values()]).T[..., None]
    return truth.crowd | truth.difficult | (truth.area < small) | (truth.area > large)


def _coco_match(truth: _Truths, found: _Found) -> tuple[np.ndarray, np.ndarray]:
    """Detections that are matched, and ignored: bool [area, IoU, d].

    Each, the best first, takes the object that it overlaps most of those that are free; only where there is none, one
    that does not count. Of equal overlaps the last object is taken, as pycocotools does.
    """
    boxes = found.boxes
    shape = (len(AREAS), len(IOUS), len(boxes))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    small, large = np.array([*AREAS.values()]).T[..., None]
    outside = (areas < small) | (areas > large)
    if len(truth.boxes) and len(boxes):
        overlap, skip = _iou(boxes, truth)[:, ::-1], _ignored(truth)[:, None, ::-1]
        crowd, least = truth.crowd[::-1], np.minimum(IOUS, 1 - 1e-10)[None, :, None]
        free = np.ones((len(AREAS), len(IOUS), len(truth.boxes)), bool)
        rows, columns = np.indices(free.shape[:2])
        for d in np.flatnonzero(overlap.max(1) >= IOUS[0]):
            # A value above 1 puts the objects that count before those that do not.
            value = np.where((overlap[d] >= least) & free, overlap[d] + 2 * ~skip, 0)
            best = value.argmax(-1)
            matched[..., d] = hit = value[rows, columns, best] > 0
            ignored[..., d] = hit & skip[rows, 0, best]
            free[rows, columns, best] &= ~hit | crowd[best]
    return matched, ignored | (~matched & outside[:, None])


def _iou(boxes: np.ndarray, truth: _Truths) -> np.ndarray:
    """IoU [d, k]; with a crowd, the share of the detection that lies in it."""
    low = np.maximum(boxes[:, None, :2], truth.boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], truth.boxes[:, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    area, other = (np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (boxes, truth.boxes))
    whole = np.where(truth.crowd, area[:, None], area[:, None] + other - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _by_class(
    truths: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, list[tuple[_Truths, _Found]]]]:
    """Label and, for each image with objects or detections of it, these."""
    if len(truths) != len(predictions):
        raise UserError(
            f"{len(truths)} images with truths, but {len(predictions)} with predictions: give both for each"
        )
    images: dict[int, list[tuple[_Truths, _Found]]] = {}
    for place, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
        boxes, labels = _arrays(truth, f"truth {place}")
        areas = np.asarray(truth.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(-1)), np.float64)
        crowd, difficult = (np.asarray(truth.get(name, np.zeros(len(labels))), bool) for name in ("crowd", "difficult"))
        of_truth = _Truths(boxes, crowd, difficult, areas)
        boxes, theirs = _arrays(found, f"prediction {place}")
        scores = np.asarray(found["scores"], np.float64)
        if scores.shape != theirs.shape or not np.isfinite(scores).all():
            raise UserError(f"prediction {place}: scores must be {len(theirs)} finite numbers, one for each box")
        for label in np.union1d(labels, theirs).tolist():
            chosen = np.flatnonzero(theirs == label)
            best = chosen[np.argsort(-scores[chosen], kind="stable")]
            here = _Truths(*(x[labels == label] for x in of_truth))
            images.setdefault(label, []).append((here, _Found(boxes[best], scores[best])))
    yield from sorted(images.items())


def _arrays(image: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = np.asarray(image["boxes"], np.float64).reshape(-1, 4), np.asarray(image["labels"]).reshape(-1)
    if len(boxes) != len(labels) or not np.isfinite(boxes).all():
        raise UserError(
            f"{name}: {len(boxes)} boxes with {len(labels)} labels: give a label, and finite corners, for each"
        )
    return boxes, labels.astype(int)
