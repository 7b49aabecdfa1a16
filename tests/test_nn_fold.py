"""Folding BatchNorm into the convolution before it."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn

X = np.random.default_rng(0).normal(size=(2, 12, 12, 8)).astype(np.float32)


class Net(linen.Module):
    """Network with every kind of convolution before a BatchNorm, and every reason not to fold one."""

    @linen.compact
    def __call__(self, x, *, train=False):
        def norm(x, name, **kwargs):
            return nn.BatchNorm(name=name, **kwargs)(x, use_running_average=not train)

        x = linen.relu(norm(nn.Conv(16, 3, name="dense")(x), "dense_bn"))
        x = linen.relu(norm(nn.Conv(16, 3, groups=4, use_bias=False, name="grouped")(x), "grouped_bn", use_scale=False))
        x = linen.relu(norm(nn.DepthwiseConv(3, 2, name="depthwise")(x), "depthwise_bn", use_bias=False))
        x = linen.relu(norm(nn.SeparableConv(8, 3, name="separable")(x), "separable_bn", epsilon=1e-5))
        shown = nn.Conv(8, 1, name="shown")(x)
        x = norm(shown, "shown_bn")
        shared = nn.Conv(8, 1, name="shared")
        x = norm(shared(x), "first_bn") + norm(shared(x), "second_bn")
        x = norm(linen.relu(nn.Conv(8, 1, name="active")(x)), "active_bn")
        return x, {"shown": shown}


@pytest.fixture(scope="module")
def variables():
    """Random variables, so that no factor is one and no shift zero."""
    start = Net().init(jax.random.key(0), X)
    leaves, structure = jax.tree.flatten(start)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [rng.uniform(0.2, 1.5, p.shape).astype(np.float32) for p in leaves])


def test_inference_is_the_same_and_only_what_can_be_folded_is(variables):
    folded = nn.fold_batch_norm(Net(), variables, X.shape[1:])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), folded) == jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    want, got = (jax.jit(Net().apply)(v, X) for v in (variables, folded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), got, want)
    for name in ("dense", "grouped", "depthwise", "separable"):
        np.testing.assert_allclose(folded["batch_stats"][f"{name}_bn"]["var"], 1, atol=2e-3)
        assert (folded["params"][f"{name}_bn"].get("scale", jnp.ones(1)) == 1).all()
    for name in ("shown", "first", "second", "active"):
        jax.tree.map(
            np.testing.assert_array_equal, folded["batch_stats"][f"{name}_bn"], variables["batch_stats"][f"{name}_bn"]
        )
    for name in ("shown", "shared", "active"):
        jax.tree.map(np.testing.assert_array_equal, folded["params"][name], variables["params"][name])


def test_the_variables_given_stay_as_they_are(variables):
    before = jax.tree.map(np.array, variables)
    nn.fold_batch_norm(Net(), variables, X.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_a_model_without_batch_norm_is_returned_as_it_is():
    class Plain(linen.Module):
        image_shape = (8, 8, 3)

        @linen.compact
        def __call__(self, x, *, train=False):
            return nn.Conv(4, 3)(x)

    variables = Plain().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    jax.tree.map(np.testing.assert_array_equal, nn.fold_batch_norm(Plain(), variables), variables)
