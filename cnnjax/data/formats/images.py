"""Image files: found, measured and decoded to uint8 [h, w, c], by PIL."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cnnjax.types import UserError

MODES = {1: "L", 3: "RGB"}  # channels → PIL's mode
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class CorruptImageError(UserError):
    """Bytes that are no readable image."""


def decode(data: bytes | Path, channels: int, name: object, *, upright: bool = False) -> np.ndarray:
    """Image file → uint8 [h, w, channels]; gray, 16-bit gray, palette, CMYK and alpha are converted.

    Args:
      data: the file's bytes, or its path.
      channels: 1 (luma) or 3 (RGB).
      name: shown in the error.
      upright: rotate the image by its EXIF orientation, as viewers do; tfds and published data sets ignore it.

    Raises:
      CorruptImageError: the file is truncated, damaged, no image, or its pixels have no known range.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            converted = _eight_bit(image).convert(MODES[channels])
            turn = _turn(image) if upright else None
            pixels = np.asarray(converted if turn is None else converted.transpose(turn))
    # Exceptions of PIL's decoders for damaged files.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{name}: not a readable image ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    # PIL's own conversion clips 16 bits at 255 instead of scaling them.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range, save it with 8 or 16 bits")
    return image


# EXIF orientation → the operation that undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises any exception for damaged EXIF data; the pixels are good
        return None


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as viewers show the image, from its header; None if there is none."""
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if sideways else image.size
    except Exception:  # PIL raises any exception for damaged files
        return None


def images_below(root: Path) -> list[Path]:
    """Paths of the images in a folder and its sub-folders, sorted; hidden files and folders are left out."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)
