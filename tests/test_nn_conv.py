"""The convolution layers: parameters, parity with Keras, errors."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cnnjax import nn

X = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype(np.float32)


def weights(*shapes):
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def keras_output(layer, arrays):
    layer.build(X.shape)
    layer.set_weights(arrays)
    return np.asarray(layer(X))


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_conv_is_keras_conv2d(strides, padding):
    kernel, bias = weights((3, 3, 2, 6), (6,))
    ours = nn.Conv(6, 3, strides=strides, padding=padding, groups=2)
    got = ours.apply({"params": {"kernel": kernel, "bias": bias}}, X)
    layer = keras.layers.Conv2D(6, 3, strides=strides, padding=padding.lower(), groups=2)
    np.testing.assert_allclose(got, keras_output(layer, [kernel, bias]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, "SAME"), (1, "VALID")])
def test_separable_is_keras_separable(strides, padding):
    depthwise, pointwise, bias = weights((3, 3, 4, 2), (1, 1, 8, 5), (5,))
    ours = nn.SeparableConv(5, 3, multiplier=2, strides=strides, padding=padding)
    params = {
        "depthwise": {"kernel": depthwise.reshape(3, 3, 1, 8)},
        "pointwise": {"kernel": pointwise, "bias": bias},
    }
    layer = keras.layers.SeparableConv2D(5, 3, depth_multiplier=2, strides=strides, padding=padding.lower())
    want = keras_output(layer, [depthwise, pointwise, bias])
    np.testing.assert_allclose(ours.apply({"params": params}, X), want, rtol=1e-4, atol=1e-5)


def test_depthwise_is_keras_depthwise():
    kernel, bias = weights((3, 3, 4, 2), (8,))
    params = {"kernel": kernel.reshape(3, 3, 1, 8), "bias": bias}
    got = nn.DepthwiseConv(3, multiplier=2, padding="VALID", dilation=2).apply({"params": params}, X)
    layer = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2)
    np.testing.assert_allclose(got, keras_output(layer, [kernel, bias]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "strides", "padding"), [(3, 2, "SAME"), (4, 2, "SAME"), (3, 2, "VALID"), (2, 3, "VALID")]
)
def test_conv_transpose_is_keras_conv2d_transpose(window, strides, padding):
    kernel, bias = weights((window, window, 5, 4), (5,))
    ours = nn.ConvTranspose(5, window, strides=strides, padding=padding)
    got = ours.apply({"params": {"kernel": kernel, "bias": bias}}, X)
    layer = keras.layers.Conv2DTranspose(5, window, strides=strides, padding=padding.lower())
    np.testing.assert_allclose(got, keras_output(layer, [kernel, bias]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rank_of_the_input_decides(dims):
    x = np.zeros((1, *(4,) * dims, 2), np.float32)
    layers = {
        nn.Conv(3, 2): (*(2,) * dims, 2, 3),
        nn.DepthwiseConv(2, multiplier=3): (*(2,) * dims, 1, 6),
        nn.ConvTranspose(3, 2): (*(2,) * dims, 3, 2),
    }
    for layer, shape in layers.items():
        y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
        assert variables["params"]["kernel"].shape == shape
        assert y.shape[1:-1] == (4,) * dims


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv(256, 3, groups=2), 3 * 3 * 32),
        (nn.DepthwiseConv(5, multiplier=16), 5 * 5),
        (nn.ConvTranspose(256, 3), 3 * 3 * 64),
    ],
)
def test_kernels_start_as_he(layer, fan_in):
    x = jnp.zeros((1, 4, 4, 64))
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(params["kernel"].std(), np.sqrt(2 / fan_in), rtol=0.03)
    assert not params["bias"].any()


def test_bias_and_types():
    layer = nn.Conv(3, 3, use_bias=False, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), X)["params"]
    assert set(params) == {"kernel"}
    assert params["kernel"].dtype == jnp.float32
    assert layer.apply({"params": params}, X).dtype == jnp.bfloat16
    assert nn.Conv(3, 3, use_bias=False).apply({"params": params}, X).dtype == jnp.float32


@pytest.mark.parametrize("layer", [nn.Conv(6, 3, groups=3), nn.Conv(6, 3, groups=4), nn.Conv(6, 3, groups=0)])
def test_groups_must_divide(layer):
    with pytest.raises(ValueError, match=f"divide 4 input and 6 output channels, got {layer.groups}"):
        layer.init(jax.random.key(0), X)


def test_kernel_size_must_fit_the_rank():
    with pytest.raises(ValueError, match=r"kernel_size as a positive int or 2 of them, got \(3, 3, 3\)"):
        nn.Conv(6, (3, 3, 3)).init(jax.random.key(0), X)
