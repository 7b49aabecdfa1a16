"""ops.conv against a plain NumPy loop of the chapter's equation 14-1, and against its own adjoint."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cnnjax.ops import conv as ops


def same_pads(size, window, stride):
    out = -(-size // stride)
    total = max((out - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def loop_conv(x, kernel, strides, pads, dilation, groups=1):
    """Equation 14-1, one output at a time, in float64."""
    dims = x.ndim - 2
    x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    window, (fan_in, features) = kernel.shape[:-2], kernel.shape[-2:]
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    out = [(x.shape[1 + a] - extent[a]) // strides[a] + 1 for a in range(dims)]
    z = np.zeros((x.shape[0], *out, features))
    for n, k in itertools.product(range(x.shape[0]), range(features)):
        first = k // (features // groups) * fan_in
        for position in np.ndindex(*out):
            for tap in np.ndindex(*window):
                where = tuple(position[a] * strides[a] + tap[a] * dilation[a] for a in range(dims))
                for channel in range(fan_in):
                    z[(n, *position, k)] += x[(n, *where, first + channel)] * kernel[(*tap, channel, k)]
    return z


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


CASES = [  # spatial, window, strides, padding, dilation, groups, channels in, out
    ((13,), (6,), 5, "SAME", 1, 1, 2, 3),
    ((13,), (6,), 5, "VALID", 1, 1, 2, 3),
    ((9,), (3,), 2, ((2, 0),), 2, 2, 4, 2),
    ((5, 7), (3, 3), 2, "SAME", 1, 1, 3, 2),
    ((6, 5), (2, 3), (1, 2), "SAME", 1, 1, 1, 2),
    ((6, 6), (3, 3), 2, 1, 1, 1, 2, 2),
    ((7, 6), (3, 2), 1, "SAME", (2, 3), 1, 1, 2),
    ((5, 5), (3, 3), 1, "VALID", 1, 3, 6, 3),
    ((5, 4), (1, 1), 1, "VALID", 1, 1, 3, 4),
    ((4, 4), (3, 3), (2, 1), ((0, 2), (1, 0)), 1, 1, 2, 1),
    ((4, 3, 4), (2, 3, 2), (2, 1, 2), "SAME", 1, 1, 2, 2),
    ((3, 4, 5), (2, 2, 2), 1, 1, (1, 2, 1), 2, 2, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_is_equation_14_1(case):
    spatial, window, strides, padding, dilation, groups, c, features = case
    x, kernel = draw((2, *spatial, c), (*window, c // groups, features))
    dims = len(spatial)
    steps = (strides,) * dims if isinstance(strides, int) else strides
    holes = (dilation,) * dims if isinstance(dilation, int) else dilation
    extent = [(k - 1) * d + 1 for k, d in zip(window, holes, strict=True)]
    pads = {
        "SAME": [same_pads(*args) for args in zip(spatial, extent, steps, strict=True)],
        "VALID": [(0, 0)] * dims,
        1: [(1, 1)] * dims,
    }.get(padding, padding)
    got = ops.conv(x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)
    want = loop_conv(x, kernel, steps, pads, holes, groups)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_figure_14_7():
    """13 wide, filter 6, stride 5: "same" gives 3 with zeros 1 + 2, "valid" gives 2 and loses the last two columns."""
    x = np.arange(1, 14, dtype=np.float32).reshape(1, 13, 1)
    ones = np.ones((6, 1, 1), np.float32)
    same = ops.conv(x, ones, strides=5, padding="SAME")
    assert same.shape == (1, 3, 1)
    np.testing.assert_array_equal(same[0, :, 0], [sum(range(1, 6)), sum(range(5, 11)), sum(range(10, 14))])
    valid = ops.conv(x, ones, strides=5, padding="VALID")
    np.testing.assert_array_equal(valid[0, :, 0], [sum(range(1, 7)), sum(range(6, 12))])


@pytest.mark.parametrize(("spatial", "window"), [((6,), (3,)), ((5, 6), (3, 2)), ((3, 4, 4), (2, 2, 3))])
def test_depthwise_keeps_channels_apart(spatial, window):
    x, kernel = draw((2, *spatial, 3), (*window, 1, 6))
    got = ops.depthwise_conv(x, kernel, strides=2, padding="SAME")
    pads = [same_pads(n, k, 2) for n, k in zip(spatial, window, strict=True)]
    ones = (1,) * len(spatial)
    steps = (2,) * len(spatial)
    for channel, j in itertools.product(range(3), range(2)):
        out = channel * 2 + j
        alone = loop_conv(x[..., [channel]], kernel[..., [out]], steps, pads, ones)
        np.testing.assert_allclose(got[..., [out]], alone, rtol=1e-5, atol=1e-5)


def test_separable_is_depthwise_then_pointwise():
    x, depthwise, pointwise = draw((2, 5, 6, 3), (3, 3, 1, 6), (1, 1, 6, 4))
    got = ops.separable_conv(x, depthwise, pointwise, strides=2, padding=1, dilation=1)
    middle = loop_conv(x, depthwise, (2, 2), [(1, 1)] * 2, (1, 1), groups=3)
    np.testing.assert_allclose(got, middle @ pointwise[0, 0], rtol=1e-5, atol=1e-5)


TRANSPOSED = [  # spatial, window, strides, padding, spatial out
    ((4,), (3,), 2, "SAME", (8,)),
    ((3, 4), (3, 2), (2, 3), "SAME", (6, 12)),
    ((3, 4), (4, 4), 2, 1, (6, 8)),
    ((3, 3), (3, 3), 1, "VALID", (5, 5)),
    ((3, 2), (4, 2), (2, 3), "VALID", (8, 6)),
    ((3, 3), (4, 4), 2, ((1, 0), (0, 2)), (7, 6)),
    ((2, 2, 3), (3, 2, 2), 2, "SAME", (4, 4, 6)),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_conv_transpose_is_the_adjoint(case):
    spatial, window, strides, padding, out = case
    y, kernel, a = draw((2, *spatial, 3), (*window, 2, 3), (2, *out, 2))
    up = ops.conv_transpose(y, kernel, strides=strides, padding=padding)
    assert up.shape == a.shape
    down = ops.conv(a, kernel, strides=strides, padding=padding)
    assert down.shape == y.shape
    np.testing.assert_allclose(np.vdot(down, y), np.vdot(a, up), rtol=1e-4)


def test_conv_transpose_stamps_the_kernel():
    """One pixel gives the kernel times its value, not flipped, at stride times its position."""
    y = np.zeros((1, 2, 2, 1), np.float32)
    y[0, 1, 0, 0] = 2
    kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)
    want = np.zeros((5, 5))
    want[2:5, 0:3] = 2 * kernel[..., 0, 0]
    got = ops.conv_transpose(y, kernel, strides=2, padding="VALID")
    np.testing.assert_array_equal(got[0, :, :, 0], want)


def test_gradients():
    arrays = (array.astype(np.float64) for array in draw((1, 5, 4, 2), (3, 3, 2, 2), (3, 3, 1, 4)))
    with jax.enable_x64(True):
        x, kernel, depthwise = map(jnp.asarray, arrays)
        check_grads(lambda x, k: ops.conv(x, k, strides=2), (x, kernel), order=2, modes=["rev"])
        check_grads(ops.depthwise_conv, (x, depthwise), order=2, modes=["rev"])
        check_grads(lambda x, k: ops.conv_transpose(x, k, strides=2), (x, kernel), order=2, modes=["rev"])


def test_jit_vmap_and_types():
    x, kernel = draw((3, 1, 6, 6, 2), (3, 3, 2, 2))
    mapped = jax.jit(jax.vmap(ops.conv, in_axes=(0, None)))(x, kernel)
    np.testing.assert_allclose(mapped[1], ops.conv(x[1], kernel), rtol=1e-5, atol=1e-5)
    half = ops.conv(jnp.asarray(x[0], jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), ops.conv(x[0], kernel), atol=0.1)
    assert ops.conv(np.ones((1, 3, 3, 2), np.uint8), kernel).dtype == jnp.float32


X = np.zeros((1, 5, 5, 6), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.conv(X[0, 0], X), r"got shape \(5, 6\)"),
        (lambda: ops.conv(X, np.zeros((3, 6, 2))), r"rank 4.*got \(3, 6, 2\)"),
        (lambda: ops.conv(X, np.zeros((3, 3, 5, 2))), "expected 5 input channels.*got 6"),
        (lambda: ops.conv(X, np.zeros((3, 3, 1, 4)), groups=6), "divide 6 input and 4 output.*got 6"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), groups=4), "divide 6 input and 4 output.*got 4"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), strides=(1, 2, 3)), r"strides.*got \(1, 2, 3\)"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), dilation=0), "dilation.*got 0"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), padding="same"), "padding.*got 'same'"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), padding=-1), "padding.*got -1"),
        (lambda: ops.conv(X, np.zeros((3, 3, 6, 4)), padding=(1, 1)), r"pairs.*got \(1, 1\)"),
        (lambda: ops.conv(X, np.zeros((7, 3, 6, 4)), padding="VALID"), r"\(7, 3\) does not fit.*\(5, 5\)"),
        (lambda: ops.depthwise_conv(X, np.zeros((3, 3, 1, 8))), r"m \* 6.*got \(3, 3, 1, 8\)"),
        (lambda: ops.conv_transpose(X, np.zeros((3, 3, 6, 4))), r"features, 6\].*got \(3, 3, 6, 4\)"),
        (lambda: ops.conv_transpose(X, np.zeros((2, 2, 1, 6)), padding=3), "leaves no output"),
    ],
)
def test_errors_name_both_sides(call, message):
    with pytest.raises(ValueError, match=message):
        call()
