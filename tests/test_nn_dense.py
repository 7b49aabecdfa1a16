"""Dense layers over vectors, whole feature maps, and windows of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn

X = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)


def initial(layer, x):
    return layer.init(jax.random.key(0), x)


def test_a_window_as_large_as_the_map_has_the_numbers_of_the_whole_map():
    whole, window = nn.Dense(7), nn.Dense(7, (4, 5))
    variables = initial(whole, X)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (60, 7)
    np.testing.assert_allclose(whole.apply(variables, X), X.reshape(2, 60) @ kernel, atol=1e-5)
    reshaped = {"params": {**variables["params"], "kernel": kernel.reshape(4, 5, 3, 7)}}
    assert jax.tree.map(jnp.shape, initial(window, X)) == jax.tree.map(jnp.shape, reshaped)
    found = window.apply(reshaped, X)
    assert found.shape == (2, 1, 1, 7)
    np.testing.assert_allclose(found[:, 0, 0], whole.apply(variables, X), atol=1e-5)


def test_each_window_by_hand():
    layer = nn.Dense(2, (2, 3))
    variables = initial(layer, X)
    variables["params"]["bias"] = jnp.array([1.0, -1.0])
    found = layer.apply(variables, X)
    assert found.shape == (2, 3, 3, 2)
    by_hand = (X[1, 2:4, 1:4, :, None] * variables["params"]["kernel"]).sum((0, 1, 2)) + np.array([1, -1])
    np.testing.assert_allclose(found[1, 2, 1], by_hand, atol=1e-5)


def test_vectors_need_no_window():
    vectors = X[:, 0, 0]
    variables = initial(nn.Dense(2, 1), vectors)
    assert variables["params"]["kernel"].shape == (3, 2)
    np.testing.assert_array_equal(nn.Dense(2, 1).apply(variables, vectors), nn.Dense(2).apply(variables, vectors))


def test_types_and_windows_that_do_not_fit():
    assert nn.Dense(2, 2, dtype=jnp.bfloat16).apply(initial(nn.Dense(2, 2), X), X).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="does not fit"):
        initial(nn.Dense(2, 5), X)
