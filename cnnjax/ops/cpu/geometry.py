"""Geometry of a 2-D window that slides over ``[n, h, w, c]``, shared by the forms of convolution and pooling."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.window import Pads


class Geometry(NamedTuple):
    """Shapes and settings of a 2-D convolution.

    Attributes:
      x: shape of the input, ``(n, h, w, c)``.
      kernel: shape of the kernel, ``(*window, c / groups, features)``.
      strides: in pixels, down and across.
      pads: zeros before and after each spatial dimension.
      groups: number of groups of channels.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads
    groups: int

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the result, ``(n, h, w, features)``."""
        return (self.x[0], *windows(self), self.kernel[-1])

    @property
    def window(self) -> tuple[int, ...]:
        """Height and width of the kernel, in pixels."""
        return self.kernel[:2]


class PoolGeometry(NamedTuple):
    """Shapes and settings of a 2-D pooling.

    Attributes:
      x: shape of the input, ``(n, h, w, c)``.
      window: height and width, in pixels.
      strides: in pixels, down and across.
      pads: pixels before and after each spatial dimension.
    """

    x: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the result, ``(n, h, w, c)``."""
        return (self.x[0], *windows(self), self.x[3])


def windows(g: Geometry | PoolGeometry) -> tuple[int, ...]:
    """Number of windows, down and across."""
    sizes = zip(g.x[1:3], g.pads, g.window, g.strides, strict=True)
    return tuple((size + sum(pads) - k) // s + 1 for size, pads, k, s in sizes)


def fold(g: Any, copies: int) -> Any:
    """Geometry of ``copies`` batches in one."""
    return g._replace(x=(copies * g.x[0], *g.x[1:]))


def rows(x: jax.Array) -> jax.Array:
    """Matrix of pixels ``[pixels, c]`` from ``[..., c]``."""
    return x.reshape(-1, x.shape[-1])


def pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads the two spatial dimensions with zeros; a negative count cuts pixels off."""
    return lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)))


def strided(x: jax.Array, start: Sequence[int], count: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """Every ``strides``-th pixel from ``start``, ``count`` of them, down and across."""
    (n, _, _, c), (i, j), (high, wide), (s, t) = x.shape, start, count, strides
    return lax.slice(x, (0, i, j, 0), (n, i + (high - 1) * s + 1, j + (wide - 1) * t + 1, c), (1, s, t, 1))


class Phases(NamedTuple):
    """One dimension of a window with stride s, seen from its input.

    Input pixel ``q · s + a`` meets tap u of window ``q + shift``, for each ``(u, shift)`` in ``taps[a]``.

    Attributes:
      size: number of values of q that cover the input.
      before: how far taps reach before the first window; dy is padded there.
      after: how far they reach beyond the last window.
      taps: pairs ``(u, shift)`` for each phase a = 0 … s − 1.
    """

    size: int
    before: int
    after: int
    taps: tuple[tuple[tuple[int, int], ...], ...]


def phases(g: Geometry | PoolGeometry) -> tuple[Phases, Phases]:
    """Phases of the rows and of the columns."""
    down, right = (
        _phases(size, k, s, lo, out)
        for size, k, s, (lo, _), out in zip(g.x[1:3], g.window, g.strides, g.pads, windows(g), strict=True)
    )
    return down, right


def _phases(size: int, k: int, s: int, lo: int, out: int) -> Phases:
    """Phases of an input of ``size``, window k, stride s, ``lo`` zeros before the input and ``out`` windows."""
    count = -(-size // s)
    taps = tuple(tuple((u, (a + lo - u) // s) for u in range((a + lo) % s, k, s)) for a in range(s))
    shifts = [shift for phase in taps for _, shift in phase]
    return Phases(count, max(0, -min(shifts)), max(0, count - 1 + max(shifts) - (out - 1)), taps)


def interleave(parts: Sequence[Sequence[jax.Array]], size: Sequence[int]) -> jax.Array:
    """Image whose pixel ``(q · s + a, r · t + b)`` is pixel (q, r) of ``parts[a][b]``, cut to ``size``."""
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]
    x = jnp.stack([jnp.stack(row, 3) for row in parts], 2)
    n, high, s, wide, t, c = x.shape
    return x.reshape(n, high * s, wide * t, c)[:, : size[0], : size[1]]
