"""ops.pool against plain NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from cnnjax.ops import pool


def windows(x, size, strides, pads):
    """Output positions, each with the values of its window inside the image, ``[n, count, c]``."""
    spatial = x.shape[1:-1]
    out = [(n + sum(p) - k) // s + 1 for n, k, s, p in zip(spatial, size, strides, pads, strict=True)]
    for position in np.ndindex(*out):
        starts = [i * s - p[0] for i, s, p in zip(position, strides, pads, strict=True)]
        inside = [slice(max(a, 0), min(a + k, n)) for a, k, n in zip(starts, size, spatial, strict=True)]
        yield position, x[(slice(None), *inside)].reshape(x.shape[0], -1, x.shape[-1])


def loop_pool(x, size, strides, pads, reduce):
    found = dict(windows(x, size, strides, pads))
    shape = [1 + max(p[a] for p in found) for a in range(x.ndim - 2)]
    y = np.zeros((x.shape[0], *shape, x.shape[-1]))
    for position, values in found.items():
        y[(slice(None), *position)] = reduce(values)
    return y


CASES = [  # spatial, window, strides, padding, pads
    ((7,), (3,), None, "VALID", [(0, 0)]),
    ((7,), (3,), 2, ((2, 1),), [(2, 1)]),
    ((6, 5), (2, 2), None, "VALID", [(0, 0)] * 2),
    ((6, 5), (3, 3), 2, "SAME", [(0, 1), (1, 1)]),
    ((5, 6), (3, 2), (1, 2), 1, [(1, 1)] * 2),
    ((4, 3, 5), (2, 2, 2), 2, "SAME", [(0, 0), (0, 1), (0, 1)]),
]


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "pads"), CASES, ids=str)
def test_pools_are_the_loops(spatial, window, strides, padding, pads):
    # All values are below zero: padding that counted in the maximum would win.
    x = np.random.default_rng(0).normal(size=(2, *spatial, 3)).astype(np.float32) - 10
    steps = window if strides is None else (strides,) * len(spatial) if isinstance(strides, int) else strides
    got = pool.max_pool(x, window, strides=strides, padding=padding)
    np.testing.assert_array_equal(got, loop_pool(x, window, steps, pads, lambda v: v.max(1)))
    got = pool.avg_pool(x, window, strides=strides, padding=padding)
    np.testing.assert_allclose(got, loop_pool(x, window, steps, pads, lambda v: v.mean(1)), rtol=1e-5)
    got = pool.avg_pool(x, window, strides=strides, padding=padding, count_include_pad=True)
    area = np.prod(window)
    np.testing.assert_allclose(got, loop_pool(x, window, steps, pads, lambda v: v.sum(1) / area), rtol=1e-5)


def test_int_window_is_square_and_strides_default_to_it():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(pool.max_pool(x, 2)[0, :, :, 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(pool.avg_pool(x, 2)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(pool.max_pool(x.astype(np.uint8), 2)[0, :, :, 0], [[5, 7], [13, 15]])


def test_global_average():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(pool.global_avg_pool(x), x.mean((1, 2)), atol=1e-6)
    assert pool.global_avg_pool(x, keepdims=True).shape == (2, 1, 1, 5)
    assert pool.global_avg_pool(x[0]).shape == (3, 5)


def test_global_average_of_each_window():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    found = pool.global_avg_pool(x, (4, 3))
    assert found.shape == (2, 2, 4, 3)
    np.testing.assert_allclose(found[:, 1, 2], x[:, 1:5, 2:5].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(pool.global_avg_pool(x, (5, 6))[:, 0, 0], pool.global_avg_pool(x), atol=1e-6)
    with pytest.raises(ValueError, match="does not fit"):
        pool.global_avg_pool(x, 6)


@pytest.mark.parametrize(
    ("spatial", "size"), [((7,), 3), ((5, 2), (3, 6)), ((6, 6), 6), ((13, 12), (6, 4)), ((1, 1), 2)]
)
def test_adaptive_average(spatial, size):
    """Window i begins at floor(i · n / size) and ends before ceil((i + 1) · n / size)."""
    x = np.random.default_rng(0).normal(size=(2, *spatial, 3)).astype(np.float32)
    counts = (size,) * len(spatial) if isinstance(size, int) else size
    want = np.zeros((2, *counts, 3))
    for position in np.ndindex(*counts):
        edges = [
            (int(i * n / k), int(np.ceil((i + 1) * n / k))) for i, n, k in zip(position, spatial, counts, strict=True)
        ]
        window = x[(slice(None), *(slice(*edge) for edge in edges))]
        want[(slice(None), *position)] = window.mean(tuple(range(1, x.ndim - 1)))
    np.testing.assert_allclose(pool.adaptive_avg_pool(x, size), want, atol=1e-6)


def test_adaptive_average_by_hand():
    x = np.array([1, 2, 4, 8, 16], np.float32).reshape(1, 5, 1)
    np.testing.assert_allclose(pool.adaptive_avg_pool(x, 3).ravel(), [1.5, 14 / 3, 12], rtol=1e-6)
    np.testing.assert_allclose(pool.adaptive_avg_pool(x[:, :2], 3).ravel(), [1, 1.5, 2], rtol=1e-6)
    check_grads(lambda x: pool.adaptive_avg_pool(x, 3), (x,), 2, modes=["rev"], eps=0.1)
    with pytest.raises(ValueError, match=r"size.*got 0"):
        pool.adaptive_avg_pool(x, 0)


def test_depth_pooling():
    x = np.array([[1, 5, 2, 9, 0, 3]], np.float32)
    np.testing.assert_array_equal(pool.depth_max_pool(x, 3), [[5, 9]])
    np.testing.assert_array_equal(pool.depth_max_pool(x, 2), [[5, 9, 3]])
    with pytest.raises(ValueError, match=r"divides the 20 channels, got 3"):
        pool.depth_max_pool(np.zeros((1, 4, 4, 20)), 3)


def test_half_precision_is_summed_in_float32():
    """A running sum of ones in bfloat16 stops at 256."""
    ones = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    for y in (
        pool.avg_pool(ones, 32),
        pool.global_avg_pool(ones),
        pool.adaptive_avg_pool(ones, 1),
        pool.max_pool(ones, 32),
    ):
        assert y.dtype == jnp.bfloat16
        assert float(y.ravel()[0]) == 1


def test_gradients():
    # Distinct and far apart, so that the finite difference does not change the maximum.
    x = np.random.default_rng(0).permutation(40).reshape(1, 5, 4, 2).astype(np.float32)
    check_grads(lambda x: pool.max_pool(x, 3, strides=2, padding="SAME"), (x,), 2, modes=["rev"], eps=0.1)
    check_grads(lambda x: pool.avg_pool(x, 3, strides=2, padding="SAME"), (x,), 2, modes=["rev"], eps=0.1)
    check_grads(lambda x: pool.depth_max_pool(x, 2), (x,), 1, modes=["rev"], eps=0.1)
    grad = jax.grad(lambda x: pool.max_pool(x, 2).sum())(x)
    assert int((grad != 0).sum()) == 8  # one pixel for each output


def test_vmap_and_jit():
    x = np.random.default_rng(0).normal(size=(3, 1, 4, 4, 2)).astype(np.float32)
    for f in (pool.max_pool, pool.avg_pool):
        mapped = jax.jit(jax.vmap(lambda x, f=f: f(x, 3, strides=2, padding="SAME")))(x)
        np.testing.assert_allclose(mapped[2], f(x[2], 3, strides=2, padding="SAME"), rtol=1e-6)


X = np.zeros((1, 5, 5, 2), np.float32)


@pytest.mark.parametrize("function", [pool.max_pool, pool.avg_pool])
@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X[0, 0], 2), {}, r"got shape \(5, 2\)"),
        ((X, (2, 2, 2)), {}, r"window.*got \(2, 2, 2\)"),
        ((X, 2), {"strides": 0}, "strides.*got 0"),
        ((X, 2), {"padding": "full"}, "padding.*got 'full'"),
        ((X, 2), {"padding": 2}, r"smaller than the window \(2, 2\), got \(\(2, 2\)"),
        ((X, 6), {}, r"\(6, 6\) does not fit.*\(5, 5\)"),
    ],
)
def test_errors_name_both_sides(function, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)


def test_global_average_needs_a_feature_map():
    with pytest.raises(ValueError, match=r"got shape \(2, 5\)"):
        pool.global_avg_pool(np.zeros((2, 5)))


@pytest.mark.parametrize("window", [8, 9, 16, 20])
def test_the_gradient_of_large_windows_is_lax_too(window):
    """Up to 64 pixels a window takes a form of our own, beyond it lax: an index in 20×20 does not fit into a byte."""
    x = np.random.default_rng(0).permutation(2 * 24 * 24 * 3).reshape(2, 24, 24, 3).astype(np.float32)

    def plain(x):
        return lax.reduce_window(x, -np.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")

    want = jax.grad(lambda x: (plain(x) ** 2).sum())(x)
    np.testing.assert_array_equal(jax.grad(lambda x: (pool.max_pool(x, window, strides=2) ** 2).sum())(x), want)
