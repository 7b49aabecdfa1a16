"""Geometry of a 2-D window that slides over ``[n, h, w, c]``, as convolution and pooling on CPUs share it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.window import Pads


class Geometry(NamedTuple):
    """Shapes and settings of a 2-D convolution."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads
    groups: int

    @property
    def out(self) -> tuple[int, ...]:
        """``(n, h, w, features)`` of the result."""
        return (self.x[0], *windows(self), self.kernel[-1])

    @property
    def window(self) -> tuple[int, ...]:
        """Of the kernel, in pixels."""
        return self.kernel[:2]


class PoolGeometry(NamedTuple):
    """Shapes and settings of a 2-D pooling."""

    x: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads

    @property
    def out(self) -> tuple[int, ...]:
        """``(n, h, w, c)`` of the result."""
        return (self.x[0], *windows(self), self.x[3])


def windows(g: Geometry | PoolGeometry) -> tuple[int, ...]:
    """How many windows there are, down and across."""
    sizes = zip(g.x[1:3], g.pads, g.window, g.strides, strict=True)
    return tuple((size + sum(pads) - k) // s + 1 for size, pads, k, s in sizes)


def fold(g: Any, copies: int) -> Any:
    """The same geometry for a batch of so many batches."""
    return g._replace(x=(copies * g.x[0], *g.x[1:]))


def rows(x: jax.Array) -> jax.Array:
    """``[..., c]`` as a matrix of pixels."""
    return x.reshape(-1, x.shape[-1])


def pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads (or, below zero, cuts) the two spatial dimensions with zeros."""
    return lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)))


def strided(x: jax.Array, start: Sequence[int], count: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """``count`` pixels in each direction, from ``start``, by ``strides``."""
    (n, _, _, c), (i, j), (high, wide), (s, t) = x.shape, start, count, strides
    return lax.slice(x, (0, i, j, 0), (n, i + (high - 1) * s + 1, j + (wide - 1) * t + 1, c), (1, s, t, 1))


class Phases(NamedTuple):
    """One dimension of a strided window, seen from its input.

    Input pixel ``q · s + a`` meets tap u of window ``q + shift``, for each ``(u, shift)`` in ``taps[a]``; ``size``
    values of q cover the input. Windows from ``−before`` to ``last + after`` occur.
    """

    size: int
    before: int
    after: int
    taps: tuple[tuple[tuple[int, int], ...], ...]


def phases(g: Geometry | PoolGeometry) -> tuple[Phases, Phases]:
    """Those of the rows and of the columns."""
    down, right = (
        _phases(size, k, s, lo, out)
        for size, k, s, (lo, _), out in zip(g.x[1:3], g.window, g.strides, g.pads, windows(g), strict=True)
    )
    return down, right


def _phases(size: int, k: int, s: int, lo: int, out: int) -> Phases:
    """For an input of ``size``, window k, stride s, ``lo`` zeros before the input and ``out`` windows."""
    count = -(-size // s)
    taps = tuple(tuple((u, (a + lo - u) // s) for u in range((a + lo) % s, k, s)) for a in range(s))
    shifts = [shift for phase in taps for _, shift in phase]
    return Phases(count, max(0, -min(shifts)), max(0, count - 1 + max(shifts) - (out - 1)), taps)


def interleave(parts: Sequence[Sequence[jax.Array]], size: Sequence[int]) -> jax.Array:
    """The image whose pixel ``(q · s + a, r · t + b)`` is pixel (q, r) of ``parts[a][b]``, cut to ``size``."""
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]
    x = jnp.stack([jnp.stack(row, 3) for row in parts], 2)
    n, high, s, wide, t, c = x.shape
    return x.reshape(n, high * s, wide * t, c)[:, : size[0], : size[1]]
