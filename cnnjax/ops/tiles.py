"""Images of any size in tiles that overlap: what a fully convolutional network gives, in the memory of one tile.

Where half of the overlap is at least the radius of the network's receptive field, and tiles begin at multiples of its
total stride, the result is that of the whole image. A network that pools over all of its image has no such radius.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cnnjax.types import UserError


class Tile(NamedTuple):
    """Part of one axis: the pixels that the network sees, and those that are kept of its result."""

    start: int
    stop: int
    first: int
    last: int


def along(length: int, size: int, overlap: int, multiple: int = 32) -> list[Tile]:
    """Tiles of an axis of ``length`` pixels; what they keep covers it, each pixel once, cut in the middle of overlaps.

    Tiles begin at multiples of ``multiple``. All have ``size`` pixels but the last, which ends at the border, and has
    fewer by less than ``multiple``: so an image has at most four shapes of tiles.

    Raises:
      UserError: ``overlap`` leaves less than ``multiple`` of ``size``, or one of both is no multiple of it.
    """
    if size % multiple or overlap % (2 * multiple) or size - overlap < multiple:
        raise UserError(
            f"tiles of {size} pixels that overlap by {overlap}: expected multiples of {multiple} and {2 * multiple}, "
            f"and at least {multiple} pixels more than the overlap"
        )
    if length <= size:
        return [Tile(0, length, 0, length)]
    final = -(-(length - size) // multiple) * multiple
    starts = [*range(0, final, size - overlap), final]
    stops = [start + size for start in starts[:-1]] + [length]
    cuts = [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), length]
    return [Tile(*each) for each in zip(starts, stops, cuts, cuts[1:], strict=False)]


def predict(
    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    image: np.ndarray,
    size: int,
    overlap: int,
    multiple: int = 32,
) -> dict[str, np.ndarray]:
    """Result of ``compute`` for an image [h, w, c], put together from those of its tiles.

    Args:
      compute: [1, h, w, c] → arrays [1, h · f, w · f, …] by name, f whole, the same for all tiles.
      size, overlap, multiple: pixels, see `along`.

    Raises:
      UserError: as `along`.
    """
    height, width = image.shape[:2]
    whole: dict[str, np.ndarray] = {}
    for row in along(height, size, overlap, multiple):
        for column in along(width, size, overlap, multiple):
            part = image[row.start : row.stop, column.start : column.stop]
            for name, found in compute(part[None]).items():
                factor = found.shape[1] // part.shape[0]
                if name not in whole:
                    whole[name] = np.zeros((height * factor, width * factor, *found.shape[3:]), found.dtype)
                place = tuple(slice(each.first * factor, each.last * factor) for each in (row, column))
                kept = tuple(
                    slice((each.first - each.start) * factor, (each.last - each.start) * factor)
                    for each in (row, column)
                )
                whole[name][place] = np.asarray(found[0])[kept]
    return whole
