"""Outlines of objects: polygons and run-length codes of annotation files, drawn as masks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cnnjax.data.formats import annotated
from cnnjax.data.formats.annotated import Box, Polygon, Runs, Shape

CORNERS = 64  # of the polygon that stands for an ellipse


def rasterize(shape: Shape, height: int, width: int) -> np.ndarray:
    """Mask of a shape: bool [height, width], True where it covers the pixel.

    Raises:
      ValueError: a run-length code of another size.
    """
    if isinstance(shape, Runs):
        if shape.size != (height, width) or sum(shape.counts) != height * width:
            raise ValueError(
                f"a mask of {shape.size} with {sum(shape.counts)} pixels for an image of {(height, width)}"
            )
        values = np.arange(len(shape.counts)) % 2 == 1
        return np.repeat(values, shape.counts).reshape(width, height).T
    inside = [_inside(np.array(each, np.float64), height, width) for each in shape]
    return np.any(inside, axis=0) if inside else np.zeros((height, width), bool)


FINER = 5  # a polygon's border is followed on a grid so many times finer


def _inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """True at pixels inside a polygon [n, 2] by the even-odd rule, borders as in COCO's masks.

    The border is a chain of points of the finer grid. Where it steps to another column of pixels it turns outside to
    inside, or back, for what lies below in that column, and, at the last row, on in the next ones.
    """
    points = np.trunc(FINER * corners + 0.5).astype(np.int64)
    chain = _chain(points, np.roll(points, -1, axis=0))
    (x0, y0), (x1, y1) = chain[:-1].T, chain[1:].T
    column = (np.where(x1 < x0, x1, x1 - 1) + 0.5) / FINER - 0.5
    crossed = (x1 != x0) & (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = (np.minimum(y0, y1) + 0.5) / FINER - 0.5
    below = np.ceil(np.clip(row, 0, height))
    turns = np.bincount((column * height + below)[crossed].astype(np.int64), minlength=height * width)
    odd = (turns[: height * width] & 1).astype(bool)
    return np.logical_xor.accumulate(odd).reshape(width, height).T


def _chain(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Points [m, 2] of the grid on lines [n, 2], both ends among them: one for each step along a line's longer side."""
    way, each = np.abs(ends - starts), np.arange(len(starts))
    along = (way[:, 0] < way[:, 1]).astype(int)
    turned = starts[each, along] > ends[each, along]  # rounding is that of the line to the right, or downwards
    first, last = np.where(turned[:, None], ends, starts), np.where(turned[:, None], starts, ends)
    length = way[each, along]
    slope = (last - first)[each, 1 - along] / np.maximum(length, 1)
    line = np.repeat(each, length + 1)
    step = np.arange(len(line)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(turned[line], length[line] - step, step)
    chain = np.empty((len(line), 2), np.int64)
    rows = np.arange(len(line))
    chain[rows, along[line]] = first[each, along][line] + step
    chain[rows, 1 - along[line]] = np.trunc(first[each, 1 - along][line] + slope[line] * step + 0.5)
    return chain


def polygon(values: Iterable[Any]) -> Polygon:
    """Polygon of x, y, x, y, …; empty unless these are three corners or more, of finite numbers."""
    numbers = annotated.numbers(values)
    corners = _float32(numbers if len(numbers) >= 6 and len(numbers) % 2 == 0 else ()).reshape(-1, 2)
    return corners if np.isfinite(corners).all() else corners[:0]


def _float32(numbers: Sequence[float]) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which callers check
        return np.array(numbers, np.float32)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> Polygon:
    """Polygon of an ellipse around (x, y), turned by ``angle`` in radians."""
    turns = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    along, across = radius_x * np.cos(turns), radius_y * np.sin(turns)
    cos, sin = math.cos(angle), math.sin(angle)
    with np.errstate(over="ignore", invalid="ignore"):  # the box around it is checked
        xs, ys = x + along * cos - across * sin, y + along * sin + across * cos
        return np.stack([xs, ys], axis=-1).astype(np.float32)


def box(polygons: Iterable[Polygon]) -> Box | None:
    """Smallest box around polygons, xyxy; None if there is no corner."""
    corners = np.concatenate([np.zeros((0, 2)), *polygons])
    if not len(corners):
        return None
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return left, top, right, bottom


def from_coco(segmentation: Any) -> Shape | None:
    """Shape of COCO's ``segmentation``: polygons, or a run-length code in numbers or in its string; None: no shape.

    VIA writes one polygon without the list around it.
    """
    if isinstance(segmentation, list):
        flat = segmentation and not isinstance(segmentation[0], list)
        found = tuple(each for each in map(polygon, [segmentation] if flat else segmentation) if len(each))
        return found or None
    if isinstance(segmentation, Mapping):
        try:
            height, width = map(int, segmentation["size"])
            counts = segmentation["counts"]
            return Runs((height, width), decoded(counts) if isinstance(counts, str) else tuple(map(int, counts)))
        except (LookupError, TypeError, ValueError, OverflowError):
            return None
    return None


def decoded(text: str) -> tuple[int, ...]:
    """Run lengths of COCO's compressed string: groups of 5 bits from 48 on, each run but the first two as a difference.

    Source: the layout that ``pycocotools.mask`` writes.

    Raises:
      ValueError: another character, a number over 64 bits, or the string ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text.encode():
        group = char - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"no run-length code: {text[:40]!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:  # the sign of a negative number
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a run-length code that ends within a number")
    return tuple(counts)
