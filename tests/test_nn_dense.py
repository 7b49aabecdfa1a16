"""Dense layers over vectors, whole feature maps, and windows of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 5, 3)).astype(np.float32)


def variables(*shape):
    return {"params": {"kernel": RNG.normal(size=shape).astype(np.float32), "bias": np.arange(shape[-1], dtype="f4")}}


def shapes(layer, x=X):
    return jax.tree.map(np.shape, jax.eval_shape(layer.init, jax.random.key(0), x))["params"]


def test_a_window_as_large_as_the_map_has_the_numbers_of_the_whole_map():
    whole, window = nn.Dense(7), nn.Dense(7, (4, 5))
    assert shapes(whole) == {"kernel": (60, 7), "bias": (7,)}
    assert shapes(window) == {"kernel": (4, 5, 3, 7), "bias": (7,)}
    values = variables(60, 7)
    reshaped = {"params": {**values["params"], "kernel": values["params"]["kernel"].reshape(4, 5, 3, 7)}}
    by_hand = X.reshape(2, 60) @ values["params"]["kernel"] + np.arange(7)
    np.testing.assert_allclose(whole.apply(values, X), by_hand, atol=1e-5)
    found = window.apply(reshaped, X)
    assert found.shape == (2, 1, 1, 7)
    np.testing.assert_allclose(found[:, 0, 0], by_hand, atol=1e-5)


def test_each_window_by_hand():
    values = variables(2, 3, 3, 2)
    found = nn.Dense(2, (2, 3)).apply(values, X)
    assert found.shape == (2, 3, 3, 2)
    by_hand = (X[1, 2:4, 1:4, :, None] * values["params"]["kernel"]).sum((0, 1, 2)) + np.arange(2)
    np.testing.assert_allclose(found[1, 2, 1], by_hand, atol=1e-5)


def test_vectors_need_no_window():
    vectors, values = X[:, 0, 0], variables(3, 2)
    assert shapes(nn.Dense(2, 1), vectors) == {"kernel": (3, 2), "bias": (2,)}
    np.testing.assert_array_equal(nn.Dense(2, 1).apply(values, vectors), nn.Dense(2).apply(values, vectors))


def test_types_and_windows_that_do_not_fit():
    assert nn.Dense(2, 2, dtype=jnp.bfloat16).apply(variables(2, 2, 3, 2), X).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="does not fit"):
        shapes(nn.Dense(2, 5))
