"""Upsampling: bilinear interpolation by hand, layers that start as it, and transposed convolution by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import nn
from cnnjax.nn import upsample
from cnnjax.ops import conv, resize

X = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)


def by_hand(x, height, width):
    """Bilinear interpolation of one image, pixel by pixel."""
    out = np.zeros((height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            row = np.clip((i + 0.5) * x.shape[0] / height - 0.5, 0, x.shape[0] - 1)
            column = np.clip((j + 0.5) * x.shape[1] / width - 0.5, 0, x.shape[1] - 1)
            top, left = int(row), int(column)
            below, right = min(top + 1, x.shape[0] - 1), min(left + 1, x.shape[1] - 1)
            a, b = row - top, column - left
            upper = (1 - b) * x[top, left] + b * x[top, right]
            out[i, j] = (1 - a) * upper + a * ((1 - b) * x[below, left] + b * x[below, right])
    return out


@pytest.mark.parametrize(("height", "width"), [(10, 14), (13, 31), (5, 7)])
def test_bilinear_by_hand(height, width):
    found = resize.bilinear(X, (height, width))
    np.testing.assert_allclose(found[1], by_hand(X[1], height, width), atol=2e-6)


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 32])
def test_transposed_convolution_starts_as_bilinear_interpolation(factor):
    layer = nn.BilinearUp(3, factor)
    variables = layer.init(jax.random.key(0), X)
    found = layer.apply(variables, X)
    np.testing.assert_allclose(found[0], by_hand(X[0], 5 * factor, 7 * factor), atol=2e-6)
    size = 2 * factor - factor % 2
    assert variables["params"]["kernel"].shape == (size, size, 3, 3)


def test_bilinear_window_by_hand():
    np.testing.assert_allclose(upsample.bilinear_window(2)[1] * 16, [3, 9, 9, 3])
    np.testing.assert_allclose(upsample.bilinear_window(3)[2] * 3, [1, 2, 3, 2, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((4, 4), (2, 2), 1),
        ((6, 4), (3, 4), "SAME"),
        ((3, 5), (2, 3), "SAME"),
        ((2, 3), (3, 2), "VALID"),
        ((5, 4), (1, 2), ((2, 1), (0, 3))),
    ],
)
def test_transposed_convolution_is_the_adjoint(window, strides, padding):
    """⟨conv(a, k), x⟩ = ⟨a, conv_transpose(x, k)⟩ for all a: the transposed form is the gradient by the input."""
    kernel = np.random.default_rng(1).normal(size=(*window, 4, 3)).astype(np.float32)
    found = conv.conv_transpose(X, kernel, strides=strides, padding=padding)

    def inner(a):
        y = conv.conv(a, kernel, strides=strides, padding=padding)
        return (y[:, :5, :7] * X[:, : y.shape[1], : y.shape[2]]).sum()

    np.testing.assert_allclose(found, jax.grad(inner)(jnp.zeros(found.shape)), atol=1e-5)


def test_unpooling_puts_values_where_the_maxima_were():
    before = np.array([[1, 5, 2, 2], [3, 4, 2, 2]], np.float32)[None, :, :, None]
    found = resize.unpool(np.array([[7, 9]], np.float32)[None, :, :, None], before)
    assert found[0, :, :, 0].tolist() == [[0, 7, 9, 0], [0, 0, 0, 0]]  # of equal maxima the first
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    again = resize.unpool(nn.max_pool(x, 2), x)
    np.testing.assert_array_equal(again, np.where(resize.upsample_nearest(nn.max_pool(x, 2), 2) == x, x, 0))
    with pytest.raises(ValueError, match="is not pooled from one of"):
        resize.unpool(x, x[:, :5])


def test_pixel_shuffle_by_hand():
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8)  # 2 channels of 2 × 2 pixels
    found = resize.pixel_shuffle(x, 2)
    np.testing.assert_array_equal(found[0, ..., 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found[0, ..., 1], [[4, 5], [6, 7]])
    with pytest.raises(ValueError, match="expected channels that 9 divides, got 8"):
        resize.pixel_shuffle(x, 3)


def test_fit_cuts_and_repeats_the_border():
    found = resize.fit(X, (4, 9))
    np.testing.assert_array_equal(found[:, :, :7], X[:, :4])
    np.testing.assert_array_equal(found[:, :, 8], X[:, :4, 6])


def test_subpixels_start_without_a_pattern_and_resize_convolution_has_its_size():
    layer = nn.SubPixel(4, 2)
    found, _ = layer.init_with_output(jax.random.key(0), X)
    assert found.shape == (2, 10, 14, 4)
    cells = np.asarray(found).reshape(2, 5, 2, 7, 2, 4)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))
    found, _ = nn.ResizeConv(4, 3).init_with_output(jax.random.key(0), X)
    assert found.shape == (2, 15, 21, 4)
