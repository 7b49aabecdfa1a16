"""Decoding of every kind of file, against PIL by hand."""

import copy
import io
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from cnnjax.data import preparation
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


def test_frames_are_read_and_measured_as_files_of_their_own(tmp_path, monkeypatch):
    path, second = tmp_path / "pages.tif", RGB[:20, :10]
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(second)])
    assert images.frames(path) == 2
    np.testing.assert_array_equal(images.decode(path, 3, path), RGB)
    np.testing.assert_array_equal(images.decode(path, 3, path, frame=1), second)
    assert [images.header_size(path, frame) for frame in (0, 1)] == [(40, 30), (10, 20)]
    with pytest.raises(UserError, match="not a readable image"):
        images.decode(path, 3, path, frame=2)
    # The limit of pixels is that of the page, not of the first one.
    Image.fromarray(second).save(path, save_all=True, append_images=[Image.fromarray(RGB)])
    monkeypatch.setattr(preparation, "MOST_PIXELS", 1000)
    np.testing.assert_array_equal(images.decode(path, 3, path), second)
    with pytest.raises(UserError, match="40×30 are more than"):
        images.decode(path, 3, path, frame=1)


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


WHITED = (RGB * (GRAY / 255)[..., None] + 255 * (1 - GRAY / 255)[..., None]).round()  # RGB with GRAY as alpha, on white


def transparent(mode: str) -> tuple[Image.Image, np.ndarray]:
    """Image in a mode with transparency, and its colors over white."""
    rgba = Image.fromarray(np.dstack([RGB, GRAY]))
    if mode == "RGBA":
        return rgba, WHITED
    if mode == "LA":
        gray = np.asarray(rgba.convert("L"), float)
        return rgba.convert("LA"), (gray * (GRAY / 255) + 255 - GRAY).round()[..., None].repeat(3, -1)
    palette = Image.fromarray(RGB).quantize(16)
    colors = np.array(palette.getpalette()).reshape(-1, 3)
    if mode == "P":
        palette.info["transparency"] = 3
        colors[3] = 255
    return palette, colors[np.asarray(palette)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF")]
)
def test_what_is_transparent_lies_on_white(mode, form, channels):
    image, want = transparent(mode)
    options = {"transparency": image.info["transparency"]} if mode == "P" else {}
    pixels = images.decode(encoded(image, form, **options, **({"lossless": True} if form == "WEBP" else {})), 3, "x")
    opaque = images.decode(encoded(Image.fromarray(pixels)), channels, "x")
    # Where nothing is opaque, lossless WebP may change the color, which does not show.
    assert np.abs(pixels - want).max() <= 1
    np.testing.assert_array_equal(images.decode(encoded(image, "PNG", **options), channels, "x"), opaque)


def test_one_transparent_gray_or_color_is_white():
    deep = Image.fromarray(DEEP)
    pixels = images.decode(encoded(deep, transparency=int(DEEP[3, 5])), 1, "x")[..., 0]
    assert pixels[3, 5] == 255
    np.testing.assert_array_equal(pixels != 255, DEEP[3, 5] != DEEP)
    color = images.decode(encoded(Image.fromarray(RGB), transparency=tuple(map(int, RGB[3, 5]))), 3, "x")
    assert color[3, 5].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(color[4:], RGB[4:])


def test_palettes_are_looked_up_and_one_bit_is_black_or_white():
    palette, want = transparent("opaque")
    np.testing.assert_array_equal(images.decode(encoded(palette), 3, "x"), want)
    bits = Image.fromarray(GRAY > 128)
    for form, options in (("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})):
        pixels = images.decode(encoded(bits, form, **options), 1, "x")[..., 0]
        np.testing.assert_array_equal(pixels, np.where(GRAY > 128, 255, 0))


def test_cmyk_becomes_rgb():
    flat = np.broadcast_to(np.array([200, 30, 60], np.uint8), (16, 16, 3))
    pixels = images.decode(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100), 3, "x")
    assert np.abs(pixels.astype(int) - flat).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_clipped(form, channels):
    want = np.repeat((DEEP >> 8).astype(np.uint8)[..., None], channels, -1)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(DEEP), form), channels, "x"), want)


def test_bits_and_polarity_of_a_tiff_are_minded():
    white_is_0 = bytearray(encoded(Image.fromarray(DEEP), "TIFF"))
    at = white_is_0.index(bytes([0x06, 0x01, 3, 0, 1, 0, 0, 0, 1]))  # PhotometricInterpretation, SHORT, 1 value: 1
    white_is_0[at + 8] = 0
    np.testing.assert_array_equal(images.decode(bytes(white_is_0), 1, "x")[..., 0], 255 - (DEEP >> 8))
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 3  # 12 bits, packed: two pixels in three bytes
    packed = np.stack([values[:, ::2] >> 4, (values[:, ::2] & 15) << 4 | values[:, 1::2] >> 8, values[:, 1::2] & 255])
    data = bytearray(
        encoded(Image.frombytes("L", (60, 30), packed.transpose(1, 2, 0).astype(np.uint8).tobytes()), "TIFF")
    )
    for tag, old, new in ((0x100, 60, 40), (0x102, 8, 12)):
        at = next(
            i for kind in (3, 4) if (i := data.find(tag.to_bytes(2, "little") + bytes([kind, 0, 1, 0, 0, 0, old]))) > 0
        )
        data[at + 8] = new
    np.testing.assert_array_equal(images.decode(bytes(data), 1, "x")[..., 0], values >> 4)


def test_floats_are_0_to_1():
    shares = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    pixels = images.decode(encoded(Image.fromarray(shares), "TIFF"), 1, "x")[..., 0]
    np.testing.assert_array_equal(pixels, np.rint(shares * 255))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (GRAY.astype(np.float32), r"floats are expected in 0 … 1, got 0 … 255: scale them"),
        (GRAY.astype(np.float32) / -255, r"expected in 0 … 1, got -1 … -0: scale"),
        (np.full((3, 4), np.nan, np.float32), "expected in 0 … 1, got nan … nan"),
        (GRAY.astype(np.int32), "pixels of type int32 have no fixed range: make them uint8 or uint16"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values, says):
    with pytest.raises(images.CorruptImageError, match=rf"scan\.tif: not a readable image \(.*{says}"):
        images.decode(encoded(Image.fromarray(values), "TIFF"), 3, "scan.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_exif_orientation_is_undone_where_asked(orientation, form, tmp_path):
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
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "MPO": {"quality": 100, "subsampling": 0, "save_all": True, "append_images": [stored.rotate(180)]},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        "WEBP": {"lossless": True},
    }.get(form, {})
    path = tmp_path / "photo"
    path.write_bytes(encoded(stored, form, exif=exif, **options))
    assert np.abs(images.decode(path, 3, "x", upright=True).astype(int) - RGB).max() <= 8
    sideways = orientation in (5, 6, 7, 8) and form != "TIFF"
    assert images.examine(path) == (40, 30, sideways)
    assert images.header_size(path) == (40, 30)
    if form != "TIFF":  # PIL turns it in any case
        assert images.decode(path, 3, "x").shape == oriented.shape


def test_damaged_exif_does_not_lose_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), "WEBP", lossless=True, exif=exif)
    assert images.decode(data, 3, "x", upright=True).shape == (40, 30, 3)
    damaged = data.replace(b"MM\0*", b"MX\0*")
    np.testing.assert_array_equal(images.decode(damaged, 3, "x", upright=True), RGB)


def test_of_an_animation_the_first_image_is_read():
    other = Image.fromarray(255 - GRAY)
    for form, options in (("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(Image.fromarray(GRAY), form, save_all=True, append_images=[other], **options)
        np.testing.assert_array_equal(images.decode(data, 1, "x")[..., 0], GRAY)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.png: not a readable image \(there is no such file\)"):
        images.decode(tmp_path / "gone.png", 3, tmp_path / "gone.png")
    assert images.header_size(tmp_path / "gone.png") is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"hello", "damaged, or no image of a known kind: JPEG, AVIF, BMP"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "damaged, or no image of a known kind",
        ),  # runs no Ghostscript
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC: pip install pillow-heif"),
    ],
)
def test_what_is_no_known_image_is_said(data, says):
    with pytest.raises(images.CorruptImageError, match=rf"^x\.jpg: not a readable image \({says}"):
        images.decode(data, 3, "x.jpg")


@pytest.mark.parametrize(
    "error", [OSError, SyntaxError, ValueError, MemoryError, RuntimeError, struct.error, KeyError, AssertionError]
)
def test_every_exception_of_a_decoder_is_the_one_error(error, monkeypatch, tmp_path):
    def fails(self):
        raise error("broken") if error is not MemoryError else error()

    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    for read in (lambda: images.decode(path, 3, path), lambda: images.examine(path)):
        with pytest.raises(images.CorruptImageError, match=r"a\.png: not a readable image \(.*(broken|MemoryError)"):
            read()


# ---- large images ----


def test_200_million_pixels_are_scaled_while_a_jpeg_is_decoded(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("L", (16000, 12504), 77).save(path, quality=30)
    assert images.examine(path) == (*images.header_size(path), False) == (16000, 12504, False)
    pixels = images.decode(path, 1, path)
    assert pixels.shape == (6252, 8000, 1)
    assert pixels.min() == pixels.max() == 77


def test_what_cannot_be_scaled_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(images.preparation, "MOST_PIXELS", 1000)
    image = Image.fromarray(RGB)
    for form in ("PNG", "TIFF", "GIF", "WEBP"):
        with pytest.raises(
            images.CorruptImageError, match=r"40×30 are more than 89 million pixels: .* or save it as JPEG\)"
        ):
            images.decode(encoded(image, form), 3, "x")
    assert images.decode(encoded(image, "JPEG"), 3, "x").shape == (15, 20, 3)
    assert images.decode(encoded(image, "JPEG", progressive=True), 3, "x").shape == (15, 20, 3)
    monkeypatch.setattr(images.preparation, "MOST_COEFFICIENT_BYTES", 1000)
    with pytest.raises(images.CorruptImageError, match="or save it as JPEG that is not progressive"):
        images.decode(encoded(image, "JPEG", progressive=True), 3, "x")
    monkeypatch.setattr(images.preparation, "MOST_PIXELS", 10)  # 1/8 is not enough
    with pytest.raises(images.CorruptImageError, match="make it smaller"):
        images.decode(encoded(image, "JPEG"), 3, "x")


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded():
    data = bytearray(encoded(Image.fromarray(RGB)))
    data[16:24] = (60000).to_bytes(4, "big") * 2  # of IHDR
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(images.CorruptImageError, match="it has more than 89 million pixels: make it"):
        images.decode(bytes(data), 3, "x")


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_a_tiff_of_more_rows_than_it_has_pixels_is_damaged(options):
    data = encoded(Image.fromarray(RGB), "TIFF", **options)
    size = next(x for kind in (3, 4) if (x := bytes([1, 1, kind, 0, 1, 0, 0, 0, 30])) in data)  # ImageLength
    with pytest.raises(images.CorruptImageError, match="not a readable image"):
        images.decode(data.replace(size, size[:-1] + bytes([90])), 3, "x")


# ---- folders ----


def test_files_are_listed_by_suffix_and_others_counted(tmp_path):
    for name in (
        "a.JPG",
        "b.jfif",
        "c.jpe",
        "d.avif",
        "e.mpo",
        "deep/f.webp",
        "g.heic",
        "h.HEIC",
        "i.txt",
        "j",
        ".k.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, others = images.files_below(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "b.jfif", "c.jpe", "d.avif", "f.webp", "e.mpo"]
    assert images.left_out(others) == "2 .heic (pip install pillow-heif), 1 without suffix, 1 .txt"
    assert images.left_out({".png": 1}) == "1 .png"


def test_pillow_heif_is_used_where_it_is_installed(monkeypatch, tmp_path):
    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode, self.tile = (2, 1), "L", [ImageFile._Tile("raw", (0, 0, 2, 1), 24, "L")]

    def register():
        Image.register_open("HEIF", Heif, lambda prefix: prefix[4:12] == b"ftypheic")

    for name in ("OPEN", "ID"):
        monkeypatch.setattr(Image, name, copy.copy(getattr(Image, name)))
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    images.preparation.formats.cache_clear()
    try:
        path = tmp_path / "IMG_0001.HEIC"
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\x05\x09")
        assert images.files_below(tmp_path) == ([path], {})
        assert images.decode(path, 1, path).ravel().tolist() == [5, 9]
    finally:
        monkeypatch.undo()
        images.preparation.formats.cache_clear()
