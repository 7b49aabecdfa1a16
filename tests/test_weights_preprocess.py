"""Preparation of images for published networks: pixels as Keras prepares them, crops as Keras loads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnnjax.data import transforms
from cnnjax.types import UserError
from cnnjax.weights.hub.preprocess import preprocess

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
PIXELS[0, 0, 0], PIXELS[0, 0, 1] = 0, 255


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
@pytest.mark.parametrize("images", [PIXELS, PIXELS[0], PIXELS.astype(np.float32) * 0.99, PIXELS.astype(np.float64)])
def test_equals_keras(mode, images):
    from keras.applications import imagenet_utils

    theirs = imagenet_utils.preprocess_input(images.astype(np.float32), "channels_last", mode)
    ours = preprocess(images, mode)
    assert isinstance(ours, np.ndarray)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    compiled = jax.jit(preprocess, static_argnames="mode")(images, mode=mode)
    assert isinstance(compiled, jax.Array)
    assert compiled.dtype == jnp.float32
    # XLA multiplies by the reciprocal: the last bit of values up to 152 may differ.
    np.testing.assert_allclose(compiled, theirs, rtol=2e-7, atol=1e-6)


def test_the_images_are_left_as_they_are():
    images = PIXELS.astype(np.float32)
    for mode in ("tf", "torch", "caffe"):
        preprocess(images, mode)
    np.testing.assert_array_equal(images, PIXELS)


@pytest.mark.parametrize(
    ("images", "mode", "says"),
    [
        (PIXELS, "keras", 'modes "unit", "tf", "torch", "caffe" and "ssd", got \'keras\''),
        (PIXELS.astype(np.int64), "tf", "as uint8 or float, got int64"),
        (PIXELS / 255, "tf", "pixels 0 … 255, got floats 0 … 1: scale or clip them"),
        (PIXELS / -1, "tf", "got floats -255 … -0"),
        (PIXELS * 2.0, "tf", "got floats 0 … 510"),
        (np.full((2, 2, 3), np.nan), "tf", "got floats nan … nan"),
    ],
)
def test_another_mode_type_or_range_is_refused(images, mode, says):
    with pytest.raises(UserError, match=says):
        preprocess(images, mode)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (PIXELS[..., :1], r"has shape \(3, 5, 7, 1\) but expected \(\.\.\., None, None, 3\)"),
        (PIXELS[0, 0], r"\(7, 3\)"),
    ],
)
def test_another_shape_is_an_assertion_error(images, says):
    for function in (preprocess, jax.jit(preprocess, static_argnames="mode")):
        with pytest.raises(AssertionError, match=says):
            function(images, mode="tf")


@pytest.mark.parametrize(("height", "width"), [(31, 47), (47, 31), (16, 16), (9, 12), (24, 24), (5, 200)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("keep", [True, False])
def test_square_and_squeeze_are_keras_load_img(height, width, resample, keep, tmp_path):
    from keras.utils import load_img

    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    theirs = load_img(tmp_path / "image.png", target_size=(16, 16), interpolation=resample, keep_aspect_ratio=keep)
    transform = (transforms.crop_and_resize if keep else transforms.squeeze)(16, resample)
    ours = transform({"image": image})["image"]
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_a_crop_larger_than_what_it_is_cut_from_is_refused():
    with pytest.raises(UserError, match="no square of 224 pixels can be cut where the shorter side has 192"):
        transforms.resize_and_crop(192, 224)


def test_the_modes_of_detectors_by_hand():
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_allclose(preprocess(pixels, "unit"), [[[0, 0.2, 1]]], rtol=1e-6)
    np.testing.assert_allclose(preprocess(pixels, "ssd"), [[[-122.99925, -65.9991, 151.0008]]], rtol=1e-6)
