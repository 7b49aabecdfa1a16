"""LeNet-5's trainable subsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn

X = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1) * np.array([1, -1], np.float32)
PARAMS = {"scale": np.array([0.5, 0.1], np.float32), "bias": np.array([1, 2], np.float32)}


def test_sum_times_coefficient_plus_bias():
    y = nn.Subsample(jax.nn.relu).apply({"params": PARAMS}, X)
    sums = np.array([[10, 18], [42, 50]])  # 0+1+4+5, 2+3+6+7, …
    np.testing.assert_allclose(y[0, :, :, 0], 0.5 * sums + 1, rtol=1e-6)
    np.testing.assert_allclose(y[0, :, :, 1], np.maximum(-0.1 * sums + 2, 0), rtol=1e-6)


def test_window_parameters_and_types():
    layer = nn.Subsample(jnp.tanh, window=(1, 4), dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), X)
    assert {k: v.shape for k, v in variables["params"].items()} == {"scale": (2,), "bias": (2,)}
    y = layer.apply(variables, X)
    assert y.shape == (1, 4, 1, 2)
    assert y.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"\(5, 5\) does not fit"):
        nn.Subsample(jnp.tanh, window=5).init(jax.random.key(0), X)
