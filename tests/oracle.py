"""2-D convolution, its two gradients and max pooling's derivative in NumPy, one tap at a time, without a compiler.

XLA cannot be the reference: jaxlib 0.10.2 computes wrong float32 input gradients where windows lie entirely in the
padding, and aborts on some strided ones; and its derivative of max pooling does not take the first of equal maxima, but
its gradient does, so that one is not the transpose of the other.
"""

import itertools

import numpy as np

from cnnjax.ops.cpu.geometry import Geometry, PoolGeometry


def _taps(g: Geometry) -> list[tuple[tuple[int, int], tuple[slice, ...]]]:
    """Taps of the kernel, each with the pixels of the padded image that it multiplies."""
    (_, high, wide, _), (s, t) = g.out, g.strides
    return [
        ((u, v), np.s_[:, u : u + (high - 1) * s + 1 : s, v : v + (wide - 1) * t + 1 : t])
        for u, v in itertools.product(range(g.kernel[0]), range(g.kernel[1]))
    ]


def _padded(g: Geometry, x: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(x, np.float64), ((0, 0), *g.pads, (0, 0)))


def _apart(g: Geometry, x: np.ndarray) -> np.ndarray:
    """Matrices of pixels, one for each group: ``[..., c]`` → ``[groups, pixels, c / groups]``."""
    return np.moveaxis(np.asarray(x, np.float64).reshape(-1, g.groups, x.shape[-1] // g.groups), 1, 0)


def _together(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(x, 0, 1).reshape(shape)


def conv(g: Geometry, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution y."""
    x = _padded(g, x)
    return sum(_together(_apart(g, x[pixels]) @ _apart(g, kernel[tap]), g.out) for tap, pixels in _taps(g))


def input_grad(g: Geometry, dy: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Gradient dx for the input."""
    dx = _padded(g, np.zeros(g.x))
    for tap, pixels in _taps(g):
        dx[pixels] += _together(_apart(g, dy) @ np.swapaxes(_apart(g, kernel[tap]), 1, 2), dx[pixels].shape)
    (top, _), (left, _) = g.pads
    return dx[:, top : top + g.x[1], left : left + g.x[2]]


def kernel_grad(g: Geometry, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Gradient dk for the kernel."""
    x, dk = _padded(g, x), np.zeros(g.kernel)
    for tap, pixels in _taps(g):
        dk[tap] = _together(np.swapaxes(_apart(g, x[pixels]), 1, 2) @ _apart(g, dy), g.kernel[2:])
    return dk


def max_pool_pick(g: PoolGeometry, x: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Tangent dx at the maximum of each window of x; among equal maxima the first, row by row."""
    pads, (_, high, wide, _), (s, t) = ((0, 0), *g.pads, (0, 0)), g.out, g.strides
    x, dx = np.pad(x, pads, constant_values=-np.inf), np.pad(dx, pads)
    best, picked = np.full(g.out, -np.inf), np.zeros(g.out)
    for u, v in itertools.product(range(g.window[0]), range(g.window[1])):
        pixels = np.s_[:, u : u + (high - 1) * s + 1 : s, v : v + (wide - 1) * t + 1 : t]
        picked = np.where(x[pixels] > best, dx[pixels], picked)
        best = np.maximum(best, x[pixels])
    return picked


def draw(*shapes: tuple[int, ...], seed: int = 0, dtype: type = np.float32) -> list[np.ndarray]:
    """Normal numbers around 1, so that sums do not cancel to nothing."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=shape) + 1).astype(dtype) for shape in shapes]


def assert_near(got: np.ndarray, want: np.ndarray, tolerance: float, about: object = "") -> None:
    """Fails unless the shapes are equal and each error is at most ``tolerance`` times the largest wanted element."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (about, got.shape, want.shape)
    bound = tolerance * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=str(about))
