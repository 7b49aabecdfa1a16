"""BatchNorm against NumPy, Flax and a mesh; local response normalization against a loop."""

import subprocess
import sys

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn
from cnnjax.nn.norm import batch_norm

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(4, 3, 5, 6)) * 3 + 2).astype(np.float32)
PARAMS = {name: RNG.normal(size=6).astype(np.float32) for name in ("scale", "bias")}
STATS = {"mean": RNG.normal(size=6).astype(np.float32), "var": RNG.uniform(1, 2, 6).astype(np.float32)}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


def train(layer, x, variables=VARIABLES):
    return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])


def test_training_is_numpy():
    y, changed = train(nn.BatchNorm(momentum=0.9, epsilon=0.01), X)
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))  # NumPy's var is biased
    want = (X - mean) / np.sqrt(var + 0.01) * PARAMS["scale"] + PARAMS["bias"]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * STATS["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * STATS["var"] + 0.1 * var, rtol=1e-5)


def test_inference_uses_the_running_statistics_and_leaves_them():
    y, changed = nn.BatchNorm(epsilon=0.01).apply(VARIABLES, X, use_running_average=True, mutable=["batch_stats"])
    want = (X - STATS["mean"]) / np.sqrt(STATS["var"] + 0.01) * PARAMS["scale"] + PARAMS["bias"]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    for name, value in changed["batch_stats"].items():
        np.testing.assert_array_equal(value, STATS[name])


@pytest.mark.parametrize("use_running_average", [True, False])
def test_same_values_and_gradients_as_flax(use_running_average):
    flags = {"use_running_average": use_running_average, "mutable": ["batch_stats"]}
    ours, flax = nn.BatchNorm(), linen.BatchNorm(momentum=0.99, epsilon=1e-3)
    want, want_changed = flax.apply(VARIABLES, X, **flags)
    got, got_changed = ours.apply(VARIABLES, X, **flags)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got_changed, want_changed)

    def loss(params, x, layer):
        y, _ = layer.apply({"params": params, "batch_stats": STATS}, x, **flags)
        return (y**3).sum()

    got_grads, want_grads = (jax.grad(loss, (0, 1))(PARAMS, X, layer) for layer in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), got_grads, want_grads)


def test_variables_do_not_depend_on_the_mode_and_init_does_not_train():
    layer, key = nn.BatchNorm(), jax.random.key(0)
    for flag in (True, False):
        variables = layer.init(key, X, use_running_average=flag)
        assert {k: set(v) for k, v in variables.items()} == {
            "params": {"scale", "bias"},
            "batch_stats": {"mean", "var"},
        }
        assert not variables["batch_stats"]["mean"].any()
        assert (variables["batch_stats"]["var"] == 1).all()
    bare = nn.BatchNorm(use_scale=False, use_bias=False).init(key, X, use_running_average=True)
    assert set(bare) == {"batch_stats"}


def test_a_large_mean_does_not_swallow_the_variance():
    """A mean of 1000 and a deviation of 1: E[x²] − E[x]² in float32 loses the variance to rounding."""
    x = RNG.normal(size=(4096, 1)).astype(np.float32) + 1000
    layer = nn.BatchNorm(momentum=0.0, use_scale=False, use_bias=False)
    start = {"batch_stats": {"mean": np.zeros(1, np.float32), "var": np.ones(1, np.float32)}}
    _, changed = train(layer, x, start)
    np.testing.assert_allclose(changed["batch_stats"]["var"], x.astype(np.float64).var(0), rtol=1e-3)


def test_a_scale_of_another_length_is_a_programming_error():
    with pytest.raises(AssertionError, match="shape"):
        batch_norm(X, np.ones(1, np.float32), np.zeros(6, np.float32), 1e-3)


def test_half_precision_keeps_float32_statistics():
    half, changed = train(nn.BatchNorm(momentum=0.0), jnp.asarray(X, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert changed["batch_stats"]["mean"].dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(X, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(changed["batch_stats"]["var"], rounded.var((0, 1, 2)), rtol=1e-5)
    layer = nn.BatchNorm(dtype=jnp.bfloat16)
    assert layer.apply(VARIABLES, X, use_running_average=True).dtype == jnp.bfloat16


def test_an_interceptor_freezes_it():
    """This is the way in which train.py freezes layers: it forces the call's keyword."""

    def freeze(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    with linen.intercept_methods(freeze):
        frozen, changed = train(nn.BatchNorm(), X)
    np.testing.assert_array_equal(frozen, nn.BatchNorm().apply(VARIABLES, X, use_running_average=True))
    np.testing.assert_array_equal(changed["batch_stats"]["mean"], STATS["mean"])


_ON_A_MESH = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cnnjax import nn
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
x = np.random.default_rng(0).normal(size=(8, 3, 3, 2)).astype(np.float32) + np.arange(8).reshape(8, 1, 1, 1)
layer = nn.BatchNorm(momentum=0.0)
variables = layer.init(jax.random.key(0), x, use_running_average=True)
step = jax.jit(lambda v, x: layer.apply(v, x, use_running_average=False, mutable=["batch_stats"]))
y, changed = step(variables, jax.device_put(x, NamedSharding(mesh, P("data"))))
assert len(y.sharding.device_set) == 4, y.sharding
np.testing.assert_allclose(changed["batch_stats"]["mean"], x.mean((0, 1, 2)), rtol=1e-5)
np.testing.assert_allclose(changed["batch_stats"]["var"], x.var((0, 1, 2)), rtol=1e-5)
np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3), atol=1e-5)
"""


def test_statistics_are_global_on_a_mesh():
    """The check runs in a process of its own: the number of CPU devices is fixed when JAX starts."""
    result = subprocess.run([sys.executable, "-c", _ON_A_MESH], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def loop_lrn(x, radius, k, alpha, beta):
    """Equation 14-2, one channel at a time."""
    y = np.empty(x.shape)
    channels = x.shape[-1]
    for i in range(channels):
        low, high = max(0, i - radius), min(channels - 1, i + radius)
        y[..., i] = x[..., i] * (k + alpha * (x[..., low : high + 1].astype(float) ** 2).sum(-1)) ** -beta
    return y


@pytest.mark.parametrize("radius", [0, 1, 2, 7])
def test_lrn_is_equation_14_2(radius):
    args = {"radius": radius, "k": 1.5, "alpha": 0.3, "beta": 0.6}
    want = loop_lrn(X, **args)
    np.testing.assert_allclose(nn.local_response_norm(X, **args), want, rtol=1e-5)
    np.testing.assert_allclose(nn.LocalResponseNorm(**args).apply({}, X), want, rtol=1e-5)
    # Caffe and torch divide alpha by the whole window, at the borders too.
    args["alpha"] *= 2 * radius + 1
    np.testing.assert_allclose(nn.local_response_norm(X, **args, divide=True), want, rtol=1e-5)
    np.testing.assert_allclose(nn.LocalResponseNorm(**args, divide=True).apply({}, X), want, rtol=1e-5)


def test_the_chapters_lrn_is_caffes():
    """alpha 2e-5, not divided, is alpha 1e-4 divided by n = 5; the 2012 paper's is neither."""
    big = X * 50
    chapter = nn.local_response_norm(big)
    caffe = nn.local_response_norm(big, alpha=1e-4, divide=True)
    np.testing.assert_allclose(chapter, caffe, rtol=1e-6)
    paper = nn.local_response_norm(big, k=2.0, alpha=1e-4)
    assert float(jnp.abs(chapter - paper).max()) > 1


def test_lrn_in_half_precision_and_negative_radius():
    half = nn.local_response_norm(jnp.asarray(X, jnp.bfloat16), alpha=0.1)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), nn.local_response_norm(X, alpha=0.1), rtol=0.02)
    with pytest.raises(ValueError, match="radius ≥ 0 channels, got -1"):
        nn.local_response_norm(X, radius=-1)
