"""Windows that slide over pictures at several scales, as pure functions of arrays with static shapes."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array


class Level(NamedTuple):
    """Picture at one scale: ``images`` float [n, h, w, c]; a position of the picture times ``factors`` (x, y, x, y)
    plus ``margin`` is that in them, in pixels."""

    images: jax.Array
    factors: np.ndarray
    margin: int


@dataclass(frozen=True)
class Windows:
    """Windows of one size on pictures of several.

    Attributes:
      side: height and width of a window, in pixels.
      stride: pixels from one to the next.
      scales: factors by which a picture is resized, one after the other; windows of small ones see large objects.
    """

    side: int
    stride: int
    scales: tuple[float, ...]

    def levels(self, images: Array) -> list[Level]:
        """Pictures ``[n, h, w, c]`` at each scale, bilinear and in whole numbers, as uint8 has them.

        Half a window is added on each side, so that an object at the border can be in the middle of one.
        """
        (n, h, w, c), margin = images.shape, self.side // 2
        result = []
        for scale in self.scales:
            rows, columns = max(round(h * scale), 1), max(round(w * scale), 1)
            resized = jax.image.resize(jnp.asarray(images, jnp.float32), (n, rows, columns, c), "linear")
            padded = jnp.pad(jnp.round(resized), ((0, 0), (margin, margin), (margin, margin), (0, 0)), "edge")
            result.append(Level(padded, np.array([columns / w, rows / h] * 2, np.float32), margin))
        return result

    def grid(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Top and left of each window in an image of this size, int [rows, columns]."""
        rows, columns = ((size - self.side) // self.stride + 1 for size in (height, width))
        top, left = np.indices((rows, columns)) * self.stride
        return top, left

    def cut(self, images: Array) -> jax.Array:
        """Every window of images ``[n, h, w, c]``: ``[n, rows, columns, side, side, c]``."""
        y, x = (first[..., None] + np.arange(self.side) for first in self.grid(*images.shape[1:3]))
        return jnp.asarray(images)[:, y[..., :, None], x[..., None, :]]

    def in_picture(self, boxes: Array, level: Level) -> jax.Array:
        """Boxes ``[n, rows, columns, 4]``, xyxy in the pixels of each window → those in the pixels of the picture."""
        top, left = self.grid(*level.images.shape[1:3])
        return (boxes + np.stack([left, top, left, top], -1) - level.margin) / level.factors
