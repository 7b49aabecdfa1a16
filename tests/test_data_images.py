"""Decoding of every kind of file, against PIL by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data.formats import images
from cnnjax.types import UserError

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
DEEP = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54  # 16 bits, up to 64,746


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_color_comes_back(form):
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(RGB), form, **options), 3, "x"), RGB)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_grey_is_one_channel_or_three_equal_ones(form, channels):
    pixels = images.decode(
        encoded(Image.fromarray(GRAY), form, **({"quality": 100} if form == "JPEG" else {})), channels, "x"
    )
    assert pixels.shape == (30, 40, channels)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - GRAY[..., None]).max() <= (2 if form == "JPEG" else 0)


def test_color_to_one_channel_is_rec_601_luma():
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images.decode(encoded(Image.fromarray(RGB)), 1, "x")[..., 0] - luma).max() <= 1


def test_alpha_is_dropped_and_palettes_are_looked_up():
    rgba = np.concatenate([RGB, GRAY[..., None]], -1)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(rgba)), 3, "x"), RGB)
    palette = Image.fromarray(RGB).quantize(16)
    want = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    np.testing.assert_array_equal(images.decode(encoded(palette), 3, "x"), want)


def test_cmyk_becomes_rgb():
    flat = np.broadcast_to(np.array([200, 30, 60], np.uint8), (16, 16, 3))
    pixels = images.decode(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100), 3, "x")
    assert np.abs(pixels.astype(int) - flat).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_clipped(form, channels):
    want = np.repeat((DEEP >> 8).astype(np.uint8)[..., None], channels, -1)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(DEEP), form), channels, "x"), want)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype):
    with pytest.raises(images.CorruptImageError, match=r"scan\.tif: .*no fixed range"):
        images.decode(encoded(Image.fromarray(GRAY.astype(dtype)), "TIFF"), 3, "scan.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_exif_orientation_is_undone_where_asked(orientation, form):
    oriented = {  # RGB as a camera stores it with this orientation
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, 1),
        7: np.rot90(RGB, 2).swapaxes(0, 1),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(oriented))
    data = encoded(stored, form, exif=exif, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    assert np.abs(images.decode(data, 3, "x", upright=True).astype(int) - RGB).max() <= 8
    assert images.decode(data, 3, "x").shape == oriented.shape


def test_damaged_exif_does_not_lose_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), "WEBP", lossless=True, exif=exif)
    assert images.decode(data, 3, "x", upright=True).shape == (40, 30, 3)
    damaged = data.replace(b"MM\0*", b"MX\0*")
    np.testing.assert_array_equal(images.decode(damaged, 3, "x", upright=True), RGB)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, about some of the damage
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_are_named_whatever_the_damage(form):
    data = encoded(Image.fromarray(RGB), form)
    rng = np.random.default_rng(1)
    damaged = [data[:end] for end in rng.integers(0, len(data) // 2, 20)]
    for _ in range(60):
        noisy = bytearray(data)
        for place in rng.integers(0, min(len(data), 300), 3):
            noisy[place] = rng.integers(0, 256)
        damaged.append(bytes(noisy))
    errors = []
    for each in damaged:
        try:
            images.decode(each, 3, "cat 7", upright=True)
        except images.CorruptImageError as error:
            errors.append(str(error))
    assert len(errors) >= 20  # every truncated one
    assert all(error.startswith("cat 7: not a readable image (") for error in errors)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.png: not a readable image"):
        images.decode(tmp_path / "gone.png", 3, tmp_path / "gone.png")
