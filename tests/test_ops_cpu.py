"""The forms that convolution, pooling and sums take on CPUs, against NumPy and lax in float64, on random geometries."""

import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax
from peers import FAST

from cnnjax.nn.norm import batch_norm
from cnnjax.ops import reduce
from cnnjax.ops.conv import conv
from cnnjax.ops.cpu import conv_forms, dispatch, pool_primitives, sum_primitives, winograd
from cnnjax.ops.cpu.geometry import Geometry, PoolGeometry
from cnnjax.ops.pool import max_pool
from cnnjax.ops.window import explicit_pads

# The examples are always the same, and small: a failure is shown as it was found, without shrinking.
fixed = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def examples(count):
    """``count`` in the parity suite; an eighth of them beside the other tests."""
    return count if os.environ.get("CNNJAX_EXHAUSTIVE") else -(-count // 8)


SIDES = st.integers(1, 40)
STEPS = st.tuples(st.integers(1, 3), st.integers(1, 3))
KERNELS = st.one_of(st.integers(1, 3), st.integers(1, 7))  # large ones compile slowly
SEEDS = st.integers(0, 99)


def jit(f, seed):
    """Compiles every fourth example with the options of users' programs, the others in half the time."""
    return jax.jit(f, compiler_options=FAST if seed % 4 else None)


KINDS = ("pointwise", "stem", "dense", "depthwise", "grouped")


@st.composite
def convolutions(draw, kind):
    """Geometry of the kind, and its padding in a user's form."""
    n, sides, strides = draw(st.integers(1, 3)), (draw(SIDES), draw(SIDES)), draw(STEPS)
    window = (1, 1) if kind == "pointwise" else (draw(KERNELS), draw(KERNELS))
    if kind == "deep":
        n, sides, strides, window = 4, (draw(st.integers(13, 19)), draw(st.integers(13, 19))), (1, 1), (3, 3)
    groups = draw(st.integers(2, 6)) if kind in ("depthwise", "grouped") else 1
    channels = st.integers(64, 66) if kind == "deep" else st.integers(2 if kind == "grouped" else 1, 9)
    fan_in = 1 if kind in ("depthwise", "stem") else draw(channels)
    features = groups * draw(st.integers(1, 3)) if groups > 1 else draw(channels)
    pair = st.tuples(st.integers(0, 8), st.integers(0, 8))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(pair, pair)))
    room = sides if isinstance(padding, str) else [side + sum(p) for side, p in zip(sides, padding, strict=True)]
    if padding != "SAME":
        window = tuple(min(k, r) for k, r in zip(window, room, strict=True))
    pads = explicit_pads(padding, sides, window, strides)
    return Geometry((n, *sides, groups * fan_in), (*window, fan_in, features), strides, pads, groups), padding


def assert_value_and_gradients(g, padding, seed):
    def all_three(x, kernel, dy):
        y, back = jax.vjp(lambda x, k: conv(x, k, strides=g.strides, padding=padding, groups=g.groups), x, kernel)
        return y, *back(dy)

    x, kernel, dy = oracle.draw(g.x, g.kernel, g.out, seed=seed)
    y, dx, dk = jit(all_three, seed)(x, kernel, dy)
    oracle.assert_near(y, oracle.conv(g, x, kernel), 1e-5, g)
    oracle.assert_near(dx, oracle.input_grad(g, dy, kernel), 1e-5, g)
    oracle.assert_near(dk, oracle.kernel_grad(g, x, dy), 1e-5, g)


@pytest.mark.parametrize("kind", KINDS)
@settings(fixed, max_examples=examples(60))
@given(st.data(), SEEDS)
def test_random_convolutions_and_their_gradients_are_the_sums_over_taps(kind, data, seed):
    assert_value_and_gradients(*data.draw(convolutions(kind)), seed)


@settings(fixed, max_examples=examples(12))
@given(convolutions("deep"), SEEDS)
def test_random_deep_convolutions_and_their_gradients_are_the_sums_over_taps(convolution, seed):
    assert_value_and_gradients(*convolution, seed)


@st.composite
def poolings(draw):
    n, sides, c, strides = draw(st.integers(1, 3)), (draw(SIDES), draw(SIDES)), draw(st.integers(1, 5)), draw(STEPS)
    window = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    padding = draw(
        st.one_of(
            st.sampled_from(["SAME", "VALID"]),
            st.tuples(*(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)) for k in window)),
        )
    )
    if padding != "SAME":
        window = tuple(min(k, side) for k, side in zip(window, sides, strict=True))
        if padding != "VALID":
            padding = tuple(tuple(min(p, k - 1) for p in pair) for pair, k in zip(padding, window, strict=True))
    pads = explicit_pads(padding, sides, window, strides)
    return PoolGeometry((n, *sides, c), window, strides, pads), padding


def lax_max_pool(g, x):
    window, strides, pads = (1, *g.window, 1), (1, *g.strides, 1), ((0, 0), *g.pads, (0, 0))
    return lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, strides, pads)


@settings(fixed, max_examples=examples(70))
@given(poolings(), SEEDS)
def test_random_max_pools_and_gradients_are_lax_exactly_also_of_ties_and_derivatives_match(pooling, seed):
    (g, padding), rng = pooling, np.random.default_rng(seed)

    def value_and_grad(f, x, dy):
        y, back = jax.vjp(f, x)
        return y, *back(dy)

    def ours(x):
        return max_pool(x, g.window, strides=g.strides, padding=padding)

    # With few different integers windows are full of ties, and sums of gradients are exact.
    x, dx, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (g.x, g.x, g.out))
    tangent, *got = jit(lambda x, dx, dy: (jax.jvp(ours, (x,), (dx,))[1], *value_and_grad(ours, x, dy)), seed)(
        x, dx, dy
    )
    with jax.enable_x64(True):
        plain = jax.jit(lambda x, dy: value_and_grad(lambda x: lax_max_pool(g, x), x, dy), compiler_options=FAST)
        want = plain(*(a.astype(np.float64) for a in (x, dy)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(g))
    np.testing.assert_array_equal(tangent, oracle.max_pool_pick(g, x, dx), err_msg=str(g))


SHAPES = st.one_of(
    st.tuples(SEEDS.map(lambda c: c + 1)),
    st.tuples(st.integers(1, 99), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), SIDES, SIDES, st.integers(1, 9)),
    # At and above the size from which the forms for large images are used.
    st.tuples(st.integers(1, 3), st.integers(32, 40), st.integers(32, 40), st.integers(16, 20)),
    st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(16, 20), st.integers(16, 20), st.integers(16, 20)),
)


@settings(fixed, max_examples=examples(40))
@given(SHAPES, SEEDS)
def test_channel_sum_and_broadcast_are_transposes_of_each_other_and_match_numpy(shape, seed):
    x, values = oracle.draw(shape, shape[-1:], seed=seed)

    def values_and_gradients(x, values):
        total, total_vjp = jax.vjp(reduce.channel_sum, x)
        broadcast, broadcast_vjp = jax.vjp(lambda v: reduce.broadcast_channels(v, shape), values)
        return total, *total_vjp(values), broadcast, *broadcast_vjp(x)

    total, total_grad, broadcast, broadcast_grad = jit(values_and_gradients, seed)(x, values)
    want = x.astype(np.float64).sum(tuple(range(x.ndim - 1)))
    oracle.assert_near(total, want, 1e-5, shape)
    oracle.assert_near(broadcast_grad, want, 1e-5, shape)
    np.testing.assert_array_equal(broadcast, np.broadcast_to(values, shape))
    np.testing.assert_array_equal(total_grad, np.broadcast_to(values, shape))


def plain_batch_norm(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


@settings(fixed, max_examples=examples(40))
@given(SHAPES.filter(lambda shape: math.prod(shape[:-1]) > 3), SEEDS, st.sampled_from([1e-3, 1e-5, 0.1]))
def test_random_batch_norms_and_all_their_gradients_are_those_of_plain_jnp(shape, seed, epsilon):
    c = shape[-1:]
    x, scale, bias, dy, dmean, dvar = oracle.draw(shape, c, c, shape, c, c, seed=seed)
    arrays = x, scale, bias, dy + x, dmean, dvar  # dy depends on x, or dscale would cancel to nothing

    def all_six(f, x, scale, bias, *cotangents):
        results, back = jax.vjp(lambda *args: f(*args, epsilon), x, scale, bias)
        return *results, *back(cotangents)

    got = jit(lambda *arrays: all_six(batch_norm, *arrays), seed)(*arrays)
    with jax.enable_x64(True):
        wide = (array.astype(np.float64) for array in arrays)
        want = jax.jit(lambda *arrays: all_six(plain_batch_norm, *arrays), compiler_options=FAST)(*wide)
    for name, a, b in zip(("y", "mean", "var", "dx", "dscale", "dbias"), got, want, strict=True):
        oracle.assert_near(a, b, 1e-5, (name, shape, epsilon))


# Each row of each table alone. There are many geometries, so that some suit new rows: only their cost is computed.

PADS = [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 2)), ((3, 3), (2, 4))]
CHANNELS = [(1, 1, 8), (1, 3, 32), (1, 16, 16), (1, 64, 64), (1, 128, 256), (12, 12, 12), (12, 12, 24), (4, 16, 8)]
CONVOLUTIONS = [
    Geometry((n, *sides, c), (*window, c // groups, features), strides, pads, groups)
    for n, sides, window, strides, pads, (groups, c, features) in itertools.product(
        (2, 32),
        ((9, 12), (28, 28), (112, 112)),
        ((1, 1), (2, 3), (3, 3), (5, 5), (7, 7)),
        ((1, 1), (2, 2), (1, 3)),
        PADS,
        CHANNELS,
    )
]
POOLINGS = [
    PoolGeometry((n, *sides, c), window, strides, pads)
    for n, sides, c, window, strides, pads in itertools.product(
        (2, 32), ((9, 12), (28, 28)), (1, 16), ((2, 2), (2, 3), (3, 3)), ((1, 1), (2, 2), (2, 3)), PADS[:2]
    )
]
SUMS = [(2, 3), (4096, 8), (2, 9, 12, 3), (2, 28, 28, 16), (2, 64, 32, 8), (2, 8, 16, 32, 4)]


def lax_pick(g, x, dx):
    return jax.jvp(lambda x: lax_max_pool(g, x), (x,), (dx,))[1]


def lax_place(g, x, dy):
    return jax.vjp(lambda x: lax_max_pool(g, x), x)[1](dy)[0]


TABLES = {  # table, geometries, shapes of the arguments, reference function
    "CONV": (conv_forms.CONV, CONVOLUTIONS, lambda g: (g.x, g.kernel), oracle.conv),
    "INPUT_GRAD": (conv_forms.INPUT_GRAD, CONVOLUTIONS, lambda g: (g.out, g.kernel), oracle.input_grad),
    "KERNEL_GRAD": (conv_forms.KERNEL_GRAD, CONVOLUTIONS, lambda g: (g.x, g.out), oracle.kernel_grad),
    "MAX_POOL": (pool_primitives.MAX_POOL, POOLINGS, lambda g: (g.x,), lax_max_pool),
    "PICK": (pool_primitives.PICK, POOLINGS, lambda g: (g.x, g.x), lax_pick),
    "PLACE": (pool_primitives.PLACE, POOLINGS, lambda g: (g.x, g.out), lax_place),
    "SUM": (sum_primitives.TABLE, SUMS, lambda shape: (shape,), lambda shape, x: x.sum(tuple(range(x.ndim - 1)))),
}
ROWS = [(name, i) for name, (table, *_) in TABLES.items() for i in range(len(table))]


def chosen(name, i):
    """Geometries for which row i of the table is the first that suits, cheapest first."""
    table, geometries, shapes, _ = TABLES[name]
    found = [g for g in geometries if next((row for row in table if row.suits(g)), None) is table[i]]
    return sorted(found, key=lambda g: math.prod(math.prod(shape) for shape in shapes(g)))


@pytest.mark.parametrize(("name", "i"), ROWS)
def test_no_row_of_a_table_is_dead(name, i):
    table, found = TABLES[name][0], chosen(name, i)
    assert found, f"{name}[{i}] ({table[i].form.__name__}) suits no geometry that the rows before it leave"
    assert dispatch.choose(table, found[0], lambda *_: None) is table[i].form


@pytest.mark.parametrize("cache", ["large", "none"])
@pytest.mark.parametrize(("name", "i"), ROWS)
def test_each_form_alone_is_plain_lax_in_float64(name, i, cache, monkeypatch):
    table, _, shapes, plain = TABLES[name]
    found = chosen(name, i)
    for module in (conv_forms, winograd):
        # Without a cache the forms that compute a large batch image by image do so with a small one.
        monkeypatch.setattr(module, "_CACHED", 1 << 40 if cache == "large" else 0)
    for g in found[:17:16]:  # the cheapest, and another
        arrays = oracle.draw(*shapes(g), dtype=np.float64)
        with jax.enable_x64(True):
            got = jax.jit(lambda *arrays, g=g: table[i].form(g, *arrays))(*arrays)
            want = np.asarray(plain(g, *arrays))
        assert got.dtype == jnp.float64
        oracle.assert_near(got, want, 1e-11, (table[i].form.__name__, g))


SMALL = [g for g in CONVOLUTIONS if g.x[0] * g.x[3] <= 64 and g.x[1] < 99]


@pytest.mark.parametrize("g", SMALL[:: len(SMALL) // 12], ids=str)
def test_the_oracle_is_lax(g):
    """lax computes the forward pass in float64, with padding added before; the gradients are its adjoints."""
    x, kernel, dy = oracle.draw(g.x, g.kernel, g.out, dtype=np.float64)
    with jax.enable_x64(True):
        padded = jnp.pad(x, ((0, 0), *g.pads, (0, 0)))
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            padded, kernel, g.strides, "VALID", dimension_numbers=layout, feature_group_count=g.groups
        )
    oracle.assert_near(oracle.conv(g, x, kernel), y, 1e-12, g)
    inner = np.vdot(y, dy)
    np.testing.assert_allclose(np.vdot(oracle.input_grad(g, dy, kernel), x), inner, rtol=1e-12)
    np.testing.assert_allclose(np.vdot(oracle.kernel_grad(g, x, dy), kernel), inner, rtol=1e-12)
