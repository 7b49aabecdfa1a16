"""One preparation of images: predict.py, evaluate.py, serving and use_exported.py see the same pixels.

use_exported.py is this module's file, byte for byte: see test_serving.py.
"""

from pathlib import Path

import evaluate
import numpy as np
import predict
import pytest
from PIL import Image

from cnnjax import serving
from cnnjax.data import preparation
from cnnjax.data.formats import frames

COLOR = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
FITS = ("crop", "squeeze", "square", "center")


def card(fit: str, channels: int) -> serving.Card:
    return serving.Card("classify", "fashion_cnn", {}, {}, ("a", "b"), "unit", 32, channels, fit, 40, "bilinear")


def test_linear_lies_between_the_nearest_pixels_however_small_the_output_is():
    ramp = np.arange(0, 160, 20, dtype=np.uint8)[None, :, None].repeat(2, 0)
    geometry = preparation.geometry("squeeze", 2, 2, "linear", 2, 8)
    np.testing.assert_array_equal(preparation.moved(ramp, geometry)[..., 0], [[30, 110]] * 2)  # of pixels 1, 2 and 5, 6
    one = np.array([[7, 9]], np.uint8)[..., None]
    larger = preparation.moved(one, preparation.Geometry((3, 4), (3, 4), resample="linear"))
    np.testing.assert_array_equal(larger[..., 0], [[7, 8, 8, 9]] * 3)  # 7.5 and 8.5, rounded to even
    window = preparation.Geometry((1, 2), (1, 2), window=(2, 0, 6, 2), resample="linear")
    np.testing.assert_array_equal(preparation.moved(ramp, window)[..., 0], [[50, 90]])


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """Class folders with an image of each kind in the first."""
    root, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(1)
    color, turned = Image.fromarray(COLOR), Image.Exif()
    turned[0x0112] = 6
    alpha = Image.fromarray(np.dstack([COLOR, rng.integers(0, 256, (50, 70), np.uint8)]))
    deep = Image.fromarray(rng.integers(0, 2**16, (70, 50), dtype=np.uint16))
    kinds = {
        "deep.png": (deep, {}),
        "deep.tif": (deep, {}),
        "float.tif": (Image.fromarray(rng.random((33, 50), np.float32)), {}),
        "alpha.png": (alpha, {}),
        "alpha.webp": (alpha, {"lossless": True}),
        "gray_alpha.png": (alpha.convert("LA"), {}),
        "turned.jpg": (color, {"exif": turned}),
        "turned.tif": (color, {"exif": turned}),
        "palette.png": (color.quantize(16), {"transparency": 2}),
        "palette.gif": (color.quantize(16), {"transparency": 2}),
        "bits.png": (color.convert("1"), {}),
        "cmyk.jpg": (color.convert("CMYK"), {}),
    }
    for name in "ab":
        (root / name).mkdir()
    for name, (image, options) in kinds.items():
        image.save(root / "a" / name, **options)
    color.save(root / "b" / "plain.png")
    return root


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", FITS)
def test_all_see_the_same_pixels_of_a_file(album, fit, channels):
    known = card(fit, channels)
    about = {name: getattr(known, name) for name in ("fit", "image_size", "channels", "resize", "resample")}
    paths = predict.find_images([str(album)])
    assert len(paths) == 13
    predicted = predict.open_images([frames.Frame(path) for path in paths], known)
    names = [("", "a"), ("", "b")]
    labelled = evaluate.load_data(evaluate.Config(str(album)), names, channels)
    for i, path in enumerate(paths):
        pixels = known.pixels([path])[0]
        assert pixels.shape == (32, 32, channels)
        assert np.ptp(pixels) > 50
        np.testing.assert_array_equal(predicted[i]["image"], pixels)
        np.testing.assert_array_equal(known.transform()(labelled[i])["image"], pixels)
        np.testing.assert_array_equal(preparation.prepare(path, about), pixels)
        np.testing.assert_array_equal(preparation.prepare(path.read_bytes(), about), pixels)
        array = preparation.read(path, channels)
        np.testing.assert_array_equal(known.pixels([array])[0], pixels)
        np.testing.assert_array_equal(preparation.prepare(array, about), pixels)


def test_arrays_and_files_of_the_same_pixels_are_the_same(album):
    for name in ("alpha.png", "deep.png", "deep.tif", "float.tif", "gray_alpha.png"):
        path = album / "a" / name
        with Image.open(path) as image:
            array = np.asarray(image.convert("RGBA") if image.mode == "LA" else image)
        for channels in (1, 3):
            np.testing.assert_array_equal(preparation.from_array(array, channels), preparation.read(path, channels))


@pytest.mark.parametrize("fit", FITS)
def test_every_shape_becomes_the_square(fit):
    for size in ((121, 80), (80, 121), (41, 40), (32, 32), (5, 300), (1, 1), (1, 90000), (90000, 1)):
        pixels = np.zeros((*size, 3), np.uint8)
        geometry = preparation.geometry(fit, 32, 40, "bicubic", *size)
        assert preparation.moved(pixels, geometry).shape == (32, 32, 3)


@pytest.mark.parametrize("fit", ["crop", "center"])
@pytest.mark.parametrize("upright", [False, True])
def test_of_a_long_strip_the_middle_is_cut_as_ever(fit, upright, monkeypatch):
    def cut(strip: np.ndarray, ratio: int) -> np.ndarray:
        strip = strip.swapaxes(0, 1) if upright else strip
        monkeypatch.setattr(preparation, "MOST_RATIO", ratio)
        geometry = preparation.geometry(fit, 30, 40, "bilinear", *strip.shape[:2])
        assert (geometry.window is None) == (ratio > 20)
        return preparation.moved(np.ascontiguousarray(strip), geometry).astype(int)

    noise = np.random.default_rng(2).integers(0, 256, (20, 400, 3), np.uint8)
    assert np.abs(cut(noise, 5) - cut(noise, 64)).max() <= 1
    ramp = np.linspace(0, 255, 399).astype(np.uint8)[None, :, None].repeat(20, 0)  # odd: half a pixel off the middle
    assert np.abs(cut(ramp, 5) - cut(ramp, 64)).max() <= 1
