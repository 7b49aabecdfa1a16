"""JAX's transformations of our convolution and max pooling equal those of lax's; without a form, ours are lax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export, lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxlib.mlir.passmanager import PassManager
from peers import FAST

from cnnjax.nn.norm import batch_norm
from cnnjax.ops.conv import conv
from cnnjax.ops.pool import max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {  # x, kernel, strides, pads, groups
    "pointwise strided": ((2, 7, 6, 4), (1, 1, 4, 5), (2, 2), ((0, 0), (0, 0)), 1),
    "dense strided": ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (0, 1)), 1),
    "depthwise strided, two kernels each": ((2, 8, 7, 3), (3, 3, 1, 6), (2, 2), ((0, 1), (1, 1)), 3),
    "grouped": ((2, 7, 6, 8), (3, 3, 2, 8), (1, 1), ((1, 1), (1, 1)), 4),
    "deep": ((2, 15, 14, 64), (3, 3, 64, 65), (1, 1), ((1, 1), (1, 1)), 1),
    "stem": ((2, 10, 9, 1), (5, 5, 1, 3), (1, 1), ((0, 0), (0, 0)), 1),
}
POOL = ((2, 7, 6, 3), (3, 3), (2, 2), ((1, 1), (0, 1)))
# "deep" takes as long as all others together.
NAMES = [pytest.param(name, marks=[pytest.mark.exhaustive] if name == "deep" else []) for name in (*CASES, "max pool")]


def pair(name):
    """Our operation, that of lax, and arguments in float64 (for max pooling distinct and far apart)."""
    if name == "max pool":
        shape, window, strides, pads = POOL
        x = np.random.default_rng(0).permutation(np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)
        wide = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
        ours = functools.partial(max_pool, window=window, strides=strides, padding=pads)
        return ours, lambda x: lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, *wide), (x,)
    x, kernel, strides, pads, groups = CASES[name]
    ours = functools.partial(conv, strides=strides, padding=pads, groups=groups)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT, feature_group_count=groups)

    return ours, plain, tuple(oracle.draw(x, kernel, dtype=np.float64))


def grads(f):
    """Gradients of a nonlinear loss, which show everything that f's derivatives depend on."""
    return lambda *args: jax.grad(lambda *args: (f(*args) ** 2).sum(), tuple(range(len(args))))(*args)


def tangents(args):
    return tuple(np.cos(np.arange(a.size)).reshape(a.shape) for a in args)


def reverse_of_reverse(f):
    return lambda *args: grads(lambda *a: jnp.concatenate([g.ravel() for g in grads(f)(*a)]))(*args)


def mapped(f, *in_axes):
    """Value and gradients under vmap over three multiples of the arguments."""

    def call(*args):
        many = [a if axis is None else jnp.stack([a, 2 * a, -a], axis) for a, axis in zip(args, in_axes, strict=False)]
        return jax.vmap(lambda *args: (f(*args), grads(f)(*args)), in_axes[: len(args)])(*many)

    return call


TRANSFORMS = {
    "jit": lambda f: lambda *args: (f(*args), grads(f)(*args)),
    "vmap over x": lambda f: mapped(f, 0, None),
    "vmap over kernel": lambda f: mapped(f, None, 0),
    "vmap over both": lambda f: mapped(f, 1, 2),
    "checkpoint": lambda f: grads(jax.checkpoint(f)),
    "jvp": lambda f: lambda *args: jax.jvp(f, args, tangents(args)),
    "jvp of grad": lambda f: lambda *args: jax.jvp(grads(f), args, tangents(args)),
    "linearize": lambda f: lambda *args: jax.linearize(f, *args)[1](*tangents(args)),
    "grad of grad": reverse_of_reverse,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_give_what_they_give_of_lax(transform, name):
    if name == "max pool" and transform == "vmap over kernel":
        pytest.skip("it has none")
    ours, plain, args = pair(name)
    options = None if name == "deep" else FAST  # it computes longer than it compiles
    with jax.enable_x64(True):
        jitted = (jax.jit(TRANSFORMS[transform](f), compiler_options=options) for f in (ours, plain))
        got, want = (jax.tree.leaves(f(*args)) for f in jitted)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        oracle.assert_near(a, b, 1e-10, (transform, name))


@pytest.mark.parametrize("name", NAMES)
def test_outside_of_jit_it_is_the_same(name):
    ours, plain, args = pair(name)
    with jax.enable_x64(True):
        oracle.assert_near(ours(*args), plain(*args), 1e-12)
        for a, b in zip(grads(ours)(*args), grads(plain)(*args), strict=True):
            oracle.assert_near(a, b, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_both_orders_and_modes_are_finite_differences(name):
    ours, _, args = pair(name)
    with jax.enable_x64(True):
        check_grads(jax.jit(ours), args, order=2, modes=["fwd", "rev"], eps=0.1 if name == "max pool" else None)


def test_hessian():
    x, kernel = oracle.draw((1, 3, 3, 2), (2, 2, 2, 1), dtype=np.float64)

    def loss(f):
        return lambda x, kernel: (f(x, kernel) ** 2).sum()

    def ours(x, kernel):
        return conv(x, kernel, strides=2, padding=((1, 0), (0, 1)))

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 0), (0, 1)), dimension_numbers=LAYOUT)

    with jax.enable_x64(True):
        got, want = (jax.tree.leaves(jax.jit(jax.hessian(loss(f), (0, 1)))(x, kernel)) for f in (ours, plain))
    for a, b in zip(got, want, strict=True):
        oracle.assert_near(a, b, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_exported_for_several_platforms_it_and_its_gradient_are_lax(name):
    ours, plain, args = pair(name)
    args = tuple(a.astype(np.float32) for a in args)
    # The program goes through MLIR's bytecode. Exported.serialize would only wrap this, and needs flatbuffers.
    exported = export.export(jax.jit(ours), platforms=("cpu", "cuda", "tpu"))(*args)
    assert exported.mlir_module_serialized
    oracle.assert_near(exported.call(*args), plain(*args), 1e-5)
    for a, b in zip(grads(exported.call)(*args), grads(plain)(*args), strict=True):
        oracle.assert_near(a, b, 1e-5)


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def sharded_args(args, mesh):
    """Eight images, one on each device; the kernel on all."""
    x = np.concatenate([args[0] * (i + 1) for i in range(4)]).astype(np.float32)
    rest = tuple(a.astype(np.float32) for a in args[1:])
    whole = (x, *rest)
    specs = (P("data"), *(P() for _ in rest))
    return whole, tuple(jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(whole, specs, strict=True)), specs


def primitives(f, *args):
    """Names of the primitives in f's program, at any depth."""
    found = set()

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            found.add(eqn.primitive.name)
            for sub in jaxprs_in_params(eqn.params):
                visit(sub)

    visit(jax.jit(f).trace(*args).jaxpr.jaxpr)
    return found


OURS = {"conv", "conv_input_grad", "conv_kernel_grad", "max_pool", "max_pool_pick", "max_pool_place"}
OURS |= {"channel_sum", "channel_broadcast"}
LAX = {"conv_general_dilated", "reduce_window_max"}


def assert_falls_back(f, *args):
    found = primitives(lambda *args: (f(*args), grads(f)(*args)), *args)
    assert not found & OURS, found & OURS
    assert found & LAX, found


@pytest.mark.parametrize("name", NAMES)
def test_float32_and_float64_on_one_device_or_an_auto_mesh_take_the_primitives(name):
    """This test shows that the tests of the fall-back can fail."""
    ours, _, args = pair(name)
    whole, sharded, _ = sharded_args(args, mesh_of(AxisType.Auto))
    for arrays in (whole, sharded):
        found = primitives(lambda *args: (ours(*args), grads(ours)(*args)), *arrays)
        assert found & OURS
        assert not found & LAX
    with jax.enable_x64(True):
        assert primitives(ours, *args) & OURS


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_of_an_auto_mesh_give_what_one_gives(name):
    ours, _, args = pair(name)
    whole, sharded, _ = sharded_args(args, mesh_of(AxisType.Auto))
    value_and_gradients = jax.jit(lambda *args: (ours(*args), grads(ours)(*args)))
    got, want = value_and_gradients(*sharded), value_and_gradients(*whole)
    assert len(got[0].sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        oracle.assert_near(a, b, 1e-5)


def test_batch_norm_over_eight_devices_gives_what_one_gives():
    x, scale, bias, dy = oracle.draw((8, 32, 16, 8), (8,), (8,), (8, 32, 16, 8))  # large: channel_sum takes its form
    sharded = jax.device_put(x, NamedSharding(mesh_of(AxisType.Auto), P("data")))
    ones = np.ones(8, np.float32)

    @jax.jit
    def value_and_gradients(x, scale, bias):
        results, back = jax.vjp(lambda *args: batch_norm(*args, 1e-3), x, scale, bias)
        return results, back((x + dy, ones, ones))

    assert "channel_sum" in primitives(value_and_gradients, x, scale, bias)
    for a, b in zip(*(jax.tree.leaves(value_and_gradients(x, scale, bias)) for x in (sharded, x)), strict=True):
        oracle.assert_near(a, b, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_under_shard_map_it_is_lax(name):
    ours, _, args = pair(name)
    mesh = mesh_of(AxisType.Auto)
    whole, sharded, specs = sharded_args(args, mesh)
    by_hand = jax.shard_map(ours, mesh=mesh, in_specs=specs, out_specs=P("data"))
    assert_falls_back(by_hand, *sharded)
    oracle.assert_near(jax.jit(by_hand)(*sharded), jax.jit(ours)(*whole), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_under_explicit_axes_it_is_lax(name):
    ours, _, args = pair(name)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        whole, sharded, _ = sharded_args(args, mesh)
        assert_falls_back(ours, *sharded)
        got = np.asarray(jax.jit(ours)(*sharded))
    oracle.assert_near(got, jax.jit(ours)(*whole), 1e-5)


def test_batch_norm_under_shard_map_and_explicit_axes_sums_by_jnp():
    x, scale, bias = oracle.draw((8, 32, 16, 8), (8,), (8,))
    mesh = mesh_of(AxisType.Auto)

    def norm(x, scale, bias):
        return batch_norm(x, scale, bias, 1e-3)[0]

    by_hand = jax.shard_map(norm, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    assert not primitives(by_hand, x, scale, bias) & OURS
    alone = jnp.concatenate([norm(x[i : i + 1], scale, bias) for i in range(8)])
    oracle.assert_near(jax.jit(by_hand)(x, scale, bias), alone, 1e-5)
    with jax.set_mesh(mesh_of(AxisType.Explicit)) as _:
        divided = jax.device_put(x, P("data"))
        assert "channel_sum" not in primitives(norm, divided, scale, bias)
        got = np.asarray(jax.jit(norm)(divided, scale, bias))
    oracle.assert_near(got, norm(x, scale, bias), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", NAMES)
def test_in_half_precision_it_is_lax(name, dtype):
    ours, plain, args = pair(name)
    args = tuple(jnp.asarray(a, dtype) for a in args)
    assert_falls_back(ours, *args)
    got = jax.jit(ours)(*args)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, jax.jit(plain)(*args))


def test_holes_and_other_dimensions_are_lax():
    x, kernel = oracle.draw((1, 7, 6, 2), (3, 2, 2, 3))
    assert_falls_back(functools.partial(conv, dilation=(2, 1)), x, kernel)
    assert_falls_back(conv, x[0], kernel[0])
    assert_falls_back(conv, x[None], kernel[None])
    assert_falls_back(lambda x: max_pool(x, 2), x[0])
    assert_falls_back(lambda x: max_pool(x, 2), np.concatenate([x, x])[None])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_unknown_size_is_lax_and_exports(name):
    ours, plain, args = pair(name)
    args = tuple(a.astype(np.float32) for a in args)
    unknown = export.symbolic_args_specs(args, ("b, ...", *("..." for _ in args[1:])))
    found = primitives(ours, *unknown)
    assert not found & OURS
    assert found & LAX
    exported = export.export(jax.jit(ours))(*unknown)
    for x in (args[0][:1], np.concatenate([args[0], args[0]])):
        oracle.assert_near(exported.call(x, *args[1:]), plain(x, *args[1:]), 1e-6)


def programs(name, platform):
    """StableHLO of value and gradients, for our operation and that of lax, from functions of the same names."""
    ours, plain, args = pair(name)
    args = tuple(a.astype(np.float32) for a in args)
    dy = jax.eval_shape(plain, *args)
    for f in (ours, plain):

        def value(dy, *args, f=f):
            return f(*args)

        def gradients(dy, *args, f=f):
            return jax.vjp(f, *args)[1](dy)

        yield [jax.jit(g).trace(dy, *args).lower(lowering_platforms=(platform,)) for g in (value, gradients)]


def canonical(program):
    """Text of a program without the operations whose result is not used."""
    module = program.compiler_ir("stablehlo")
    with module.context:
        PassManager.parse("builtin.module(func.func(canonicalize))").run(module.operation)
    return str(module)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocm"])
@pytest.mark.parametrize("name", NAMES)
def test_on_accelerators_value_and_gradients_are_laxs_program_to_the_letter(name, platform):
    """Only max pooling's gradient is canonicalized: it also has the maximum, which is not used there."""
    ours, plain = programs(name, platform)
    assert ours[0].as_text() == plain[0].as_text()
    as_text = canonical if name == "max pool" else lambda program: program.as_text()
    assert as_text(ours[1]) == as_text(plain[1])


@pytest.mark.parametrize(
    "name", ["pointwise strided", "depthwise strided, two kernels each", "grouped", "deep", "max pool"]
)
def test_on_cpus_they_are_not_laxs_program(name):
    """This test shows that these geometries use the forms, and that the test above can fail."""
    ours, plain = programs(name, "cpu")
    for a, b in zip(ours, plain, strict=True):
        assert canonical(a) != canonical(b)
