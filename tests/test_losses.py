"""Losses that optax lacks: hand-computed values, gradients, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import losses


def test_hand_value():
    """y = (1, 2), D = 1, j = 0.5: 2 + log(e^-0.5 + e^-1 + e^-2) = 2 + log(1.10975) = 2.10413."""
    loss = losses.rbf_map_loss(np.array([[-1.0, -2.0]]), np.array([1]), rubbish=0.5)
    np.testing.assert_allclose(loss, [2.10413], rtol=1e-5)


def test_gradient_is_the_finite_difference():
    rng = np.random.default_rng(0)
    y, labels, j, step = rng.uniform(0, 6, (3, 4)), np.array([0, 2, 3]), 1.5, 1e-5

    def equation_9(y):
        return (y[np.arange(3), labels] + np.log(np.exp(-j) + np.exp(-y).sum(1))).sum()

    want = np.zeros_like(y)
    for i in np.ndindex(*y.shape):
        bump = np.zeros_like(y)
        bump[i] = step
        want[i] = (equation_9(y + bump) - equation_9(y - bump)) / (2 * step)
    got = jax.grad(lambda y: losses.rbf_map_loss(-y, labels, rubbish=j).sum())(y.astype(np.float32))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_large_distances_do_not_underflow():
    """exp(-500) and exp(-1000) are 0 in float32; the remainder is y_D − j."""
    logits = jnp.array([[-1000.0, -2000.0]])
    np.testing.assert_allclose(losses.rbf_map_loss(logits, jnp.array([1]), rubbish=500.0), [1500.0])
    grad = jax.grad(lambda x: losses.rbf_map_loss(x, jnp.array([1])).sum())(logits)
    np.testing.assert_allclose(grad, [[0.0, -1.0]])


def test_a_far_rubbish_class_leaves_the_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0])
    want = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(losses.rbf_map_loss(logits, labels, rubbish=200.0), want, rtol=1e-5)


def test_per_example_under_vmap_jit_and_bfloat16():
    logits = -np.random.default_rng(0).uniform(0, 9, (5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0])
    whole = losses.rbf_map_loss(logits, labels)
    assert whole.shape == (5,)
    np.testing.assert_allclose(jax.jit(jax.vmap(losses.rbf_map_loss))(logits, labels), whole, rtol=1e-6)
    assert losses.rbf_map_loss(jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32


def test_errors():
    with pytest.raises(AssertionError, match=r"shape \(3,\) but expected \(2\)"):
        losses.rbf_map_loss(np.zeros((2, 10)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"positive.*got 0"):
        losses.rbf_map_loss(np.zeros((2, 10)), np.zeros(2, int), rubbish=0)
