"""Pooling as pure functions: maximum and average over windows, over everything, and over depth.

Inputs are channels last with 1, 2 or 3 spatial dimensions, ``[n, *spatial, c]``. By default, as in Keras, the
stride is the window's size and the padding ``"VALID"``.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array as JaxArray
from jax import lax

from cnnjax.ops.cpu import pool_primitives
from cnnjax.ops.cpu.dispatch import supports
from cnnjax.ops.cpu.geometry import PoolGeometry
from cnnjax.ops.window import Ints, Padding, Pads, check_fits, check_rank, explicit_pads, per_dim
from cnnjax.types import Array


def max_pool(x: Array, window: Ints, *, strides: Ints | None = None, padding: Padding = "VALID") -> JaxArray:
    """Maximum over each window; padding never wins.

    Args:
        x: ``[n, *spatial, c]``, float or int.
        window: size of the window, in pixels.
        strides: step of the window, in pixels; the window's size if None.
        padding: ``"SAME"``, ``"VALID"``, an int or ``(lo, hi)`` pairs, smaller than the window.

    Returns:
        ``[n, *out, c]`` in x's type.

    Raises:
        ValueError: rank, window or padding do not fit; both sides are named.
    """
    size, steps, pads = _geometry(x, window, strides, padding)
    x = jnp.asarray(x)
    if len(size) == 2 and supports(x):
        return pool_primitives.max_pool(PoolGeometry(x.shape, size, steps, pads), x)
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    init = np.asarray(lowest, x.dtype)
    return lax.reduce_window(x, init, lax.max, (1, *size, 1), (1, *steps, 1), ((0, 0), *pads, (0, 0)))


def avg_pool(
    x: Array,
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = False,
) -> JaxArray:
    """Average over each window, summed in float32 or better.

    Args:
        x: ``[n, *spatial, c]``, float.
        window: size of the window, in pixels.
        strides: step of the window, in pixels; the window's size if None.
        padding: ``"SAME"``, ``"VALID"``, an int or ``(lo, hi)`` pairs, smaller than the window.
        count_include_pad: True counts padded zeros in the divisor, as torch does by default (torchvision's Inception
            needs it); False does not, as TensorFlow.

    Returns:
        ``[n, *out, c]`` in x's type.

    Raises:
        ValueError: rank, window or padding do not fit; both sides are named.
    """
    size, steps, pads = _geometry(x, window, strides, padding)
    x = jnp.asarray(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = _window_sum(wide, size, steps, pads)
    if count_include_pad or not any(map(any, pads)):
        return (total / math.prod(size)).astype(x.dtype)
    ones = jnp.ones((1, *x.shape[1:-1], 1), wide.dtype)
    return (total / _window_sum(ones, size, steps, pads)).astype(x.dtype)


def global_avg_pool(x: Array, window: Ints | None = None, *, keepdims: bool = False) -> JaxArray:
    """Average of each whole feature map or, with ``window``, of every window of it, summed in float32 or better.

    ``[n, *spatial, c]`` becomes ``[n, c]``, or ``[n, 1, ..., c]`` with ``keepdims``, in x's type. With a window, which
    moves by one position, it becomes ``[n, *(spatial − window + 1), c]``. ValueError unless there are 1, 2 or 3 spatial
    dimensions and the window fits.
    """
    if window is not None:
        return avg_pool(x, window, strides=1)
    axes = tuple(range(1, check_rank(x) + 1))
    x = jnp.asarray(x)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x.mean(axes, dtype=wide, keepdims=keepdims).astype(x.dtype)


def adaptive_avg_pool(x: Array, size: Ints) -> JaxArray:
    """Average over ``size`` windows that together cover each dimension, summed in float32 or better.

    Window i covers the pixels from ``floor(i · n / size)`` to before ``ceil((i + 1) · n / size)`` of n, as in torch's
    ``AdaptiveAvgPool2d``: windows may overlap, and pixels repeat where ``size`` > n.

    Args:
        x: ``[n, *spatial, c]``, float.
        size: windows in each spatial dimension.

    Returns:
        ``[n, *size, c]`` in x's type.

    Raises:
        ValueError: rank or size do not fit; both sides are named.
    """
    counts = per_dim(size, check_rank(x), "size")
    x = jnp.asarray(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, count in enumerate(counts, start=1):
        pixels = x.shape[axis]
        if count == pixels:
            continue
        weights = np.zeros((count, pixels), wide.dtype)
        for i, row in enumerate(weights):
            start, stop = i * pixels // count, -(-(i + 1) * pixels // count)
            row[start:stop] = 1 / (stop - start)
        wide = jnp.moveaxis(jnp.tensordot(weights, wide, (1, axis), precision=lax.Precision.HIGHEST), 0, axis)
    return wide.astype(x.dtype)


def depth_max_pool(x: Array, size: int) -> JaxArray:
    """Maximum over each group of ``size`` neighboring channels (Fig. 14-10 of the chapter).

    ``[..., c]`` becomes ``[..., c / size]``. ValueError if ``size`` does not divide c.
    """
    depth = x.shape[-1]
    if size < 1 or depth % size:
        raise ValueError(f"expected a size that divides the {depth} channels, got {size}")
    return jnp.asarray(x).reshape(*x.shape[:-1], depth // size, size).max(-1)


def _geometry(
    x: Array, window: Ints, strides: Ints | None, padding: Padding
) -> tuple[tuple[int, ...], tuple[int, ...], Pads]:
    """Window, strides and padding for each spatial dimension of x, checked."""
    dims = check_rank(x)
    size = per_dim(window, dims, "window")
    steps = size if strides is None else per_dim(strides, dims, "strides")
    pads = explicit_pads(padding, x.shape[1:-1], size, steps)
    # A window wholly inside the padding has no maximum and no average.
    if any(max(pair) >= k for pair, k in zip(pads, size, strict=True)):
        raise ValueError(f"expected padding smaller than the window {size}, got {pads}")
    check_fits(x.shape[1:-1], size, pads)
    return size, steps, pads


def _window_sum(x: JaxArray, size: tuple[int, ...], steps: tuple[int, ...], pads: Pads) -> JaxArray:
    """Sum over each window, zeros outside."""
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, (1, *size, 1), (1, *steps, 1), ((0, 0), *pads, (0, 0)))
