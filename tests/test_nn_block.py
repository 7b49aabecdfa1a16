"""Convolution + BatchNorm, squeeze-and-excitation, head, and the helpers of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from cnnjax import nn

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)


def test_conv_norm_is_convolution_then_normalization_then_activation():
    layer = nn.ConvNorm(8, 3, strides=2, padding=1, groups=2)
    variables = layer.init(KEY, X, False)
    assert variables["params"]["conv"].keys() == {"kernel"}
    y, new = layer.apply(variables, X, True, mutable=["batch_stats"])
    conv = nn.Conv(8, 3, strides=2, padding=1, groups=2, use_bias=False)
    z = np.asarray(conv.apply({"params": variables["params"]["conv"]}, X))
    mean, var = z.mean((0, 1, 2)), z.var((0, 1, 2))
    np.testing.assert_allclose(y, np.maximum((z - mean) / np.sqrt(var + 1e-5), 0), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["var"], 0.9 + 0.1 * var, atol=1e-6)


def test_conv_norm_without_features_is_depthwise():
    layer = nn.ConvNorm(None, 3, activation=None)
    variables = layer.init(KEY, X, False)
    assert variables["params"]["conv"]["kernel"].shape == (3, 3, 1, 4)
    y = layer.apply(variables, X, False)
    depthwise = nn.DepthwiseConv(3, use_bias=False)
    z = depthwise.apply({"params": variables["params"]["conv"]}, X)
    np.testing.assert_allclose(y, z / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)


def test_squeeze_excite_by_hand():
    layer = nn.SqueezeExcite(reduction=2)
    params = layer.init(KEY, X)["params"]
    assert params["reduce"]["kernel"].shape == (4, 2)
    hidden = np.maximum(X.mean((1, 2)) @ params["reduce"]["kernel"], 0)
    gates = 1 / (1 + np.exp(-(hidden @ params["expand"]["kernel"])))
    np.testing.assert_allclose(layer.apply({"params": params}, X), X * gates[:, None, None, :], rtol=1e-5, atol=1e-6)


def test_squeeze_excite_without_signal_halves():
    """Every gate is sigmoid(0), a half, if the last kernel is zero."""
    layer = nn.SqueezeExcite(reduction=2)
    params = jax.tree.map(jnp.zeros_like, layer.init(KEY, X)["params"])
    np.testing.assert_allclose(layer.apply({"params": params}, X), X / 2)


def test_head_drops_in_training_only_and_gives_float32():
    layer = nn.Head(3, dropout=0.5)
    x = np.ones((2, 100), np.float32)
    variables = layer.init({"params": KEY, "dropout": KEY}, x, True)
    still = layer.apply(variables, x.astype(jnp.bfloat16), False)
    assert still.dtype == jnp.float32
    np.testing.assert_allclose(still, x @ variables["params"]["dense"]["kernel"], rtol=1e-5)
    one, two = (layer.apply(variables, x, True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert float(jnp.abs(one - two).max()) > 0


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding", "out"),
    [
        (112, 3, 2, 0, 56),  # GoogLeNet, as Caffe rounds up
        (110, 3, 2, 0, 55),  # ZFNet
        (26, 3, 2, 0, 13),
        (13, 3, 2, 0, 6),
        (56, 2, 2, 0, 28),
        (7, 2, 2, 0, 4),
        (5, 3, 2, 1, 3),
        (6, 3, 2, 1, 4),
        (4, 2, 3, 0, 2),
        (3, 1, 3, 0, 1),
        (4, 1, 2, 1, 3),  # a fourth window would begin in the padding at the end
    ],
)
def test_ceil_padding(size, window, strides, padding, out):
    x = np.zeros((1, size, size, 1))
    (lo, hi), other = nn.ceil_padding(x, window, strides, padding)
    assert (lo, hi) == other
    assert lo == padding
    assert (size + lo + hi - window) // strides + 1 == out


def test_one_image_without_a_batch_is_a_programming_error():
    with pytest.raises(AssertionError, match=r"rank 3 \(shape .* but expected 4"):
        nn.ceil_padding(X[0], 3, 2)
    with pytest.raises(AssertionError, match=r"rank 3 \(shape .* but expected 4"):
        nn.SqueezeExcite(reduction=2).init(KEY, X[0])


@pytest.mark.parametrize("shape", [(1, 4, 9, 3), (1, 9, 4, 3), (9, 9, 3)])
def test_check_images_names_the_smallest(shape):
    with pytest.raises(ValueError, match=rf"at least 5 by 5 pixels, got shape \({shape[0]}, "):
        nn.check_images(np.zeros(shape), 5)
    nn.check_images(np.zeros((1, 5, 5, 1)), 5)


def test_rematerialized_keeps_the_parameters_and_the_gradient():
    class Stage(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return nn.ConvNorm(4, 3, name="layer")(x, train)

    plain, again = (nn.rematerialized(Stage, flag)(name="stage") for flag in (False, True))
    variables = plain.init(KEY, X, False)
    assert jax.tree.structure(again.init(KEY, X, False)) == jax.tree.structure(variables)

    def loss(layer, params):
        y, _ = layer.apply({**variables, "params": params}, X, True, mutable=["batch_stats"])
        return jnp.square(y - 1).sum()

    one, two = (jax.grad(lambda p, layer=layer: loss(layer, p))(variables["params"]) for layer in (plain, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, two)
    assert "remat" in str(jax.make_jaxpr(jax.grad(lambda p: loss(again, p)))(variables["params"]))
