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


def _inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """True at pixels whose middle lies inside a polygon [n, 2] by the even-odd rule."""
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    middles = np.arange(height)[:, None] + 0.5
    rows, edges = np.nonzero((y0 <= middles) != (y1 <= middles))
    slopes = (x1 - x0)[edges] / (y1 - y0)[edges]
    crossings = x0[edges] + (rows + 0.5 - y0[edges]) * slopes
    # Each crossing turns inside to outside, or back, for all middles right of it.
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    turns = np.zeros((height, width + 1), int)
    np.add.at(turns, (rows, columns), 1)
    return turns.cumsum(axis=1)[:, :width] % 2 == 1


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
