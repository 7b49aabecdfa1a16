"""What happens to one image on the host: decoding and changes of shape, uint8 in and out, by PIL."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cnnjax.types import UserError

Transform = Callable[[np.ndarray], np.ndarray]
MODES = {1: "L", 3: "RGB"}
Resample = Literal["bilinear", "bicubic"]


class CorruptImageError(UserError):
    """Bytes that are no readable image."""


def decode(data: bytes | Path, channels: int, name: object, *, upright: bool = False) -> np.ndarray:
    """Image file → uint8 [h, w, channels]; grey, 16-bit grey, palette, CMYK and alpha are converted.

    Args:
      data: the file's bytes, or its path.
      channels: 1 (luma) or 3 (RGB).
      name: said in the error.
      upright: turn the image as its EXIF orientation says, like viewers; tfds and published data sets ignore it.

    Raises:
      CorruptImageError: the file is truncated, damaged, no image, or its pixels have no known range.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            converted = _eight_bit(image).convert(MODES[channels])
            turn = _turn(image) if upright else None
            pixels = np.asarray(converted if turn is None else converted.transpose(turn))
    # What PIL's decoders raise for damaged files.
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


# EXIF orientation → what undoes it.
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
    except Exception:  # PIL raises every kind for damaged EXIF data; the pixels are good
        return None


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _resize(
    image: np.ndarray, height: int, width: int, resample: Resample = "bilinear", box: tuple | None = None
) -> np.ndarray:
    """``box``: (left, top, right, bottom) of what becomes the whole; None: all of the image."""
    if image.shape[:2] == (height, width) and box is None:
        return image
    resized = _to_pil(image).resize((width, height), Image.Resampling[resample.upper()], box)
    return np.asarray(resized).reshape(height, width, image.shape[-1])


def squeeze(size: int, resample: Resample = "bilinear") -> Transform:
    """To ``size`` × ``size``, whatever that does to the proportions (the chapter's way)."""
    return lambda image: _resize(image, size, size, resample)


def resize_and_crop(resize: int, size: int, resample: Resample = "bilinear") -> Transform:
    """Shorter side to ``resize``, proportions kept, then the central square: torchvision's Resize and CenterCrop.

    Raises:
      UserError: ``size`` is larger than ``resize``.
    """
    if size > resize:
        raise UserError(f"no square of {size} pixels can be cut where the shorter side has {resize}")

    def crop(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        short = min(height, width)
        # Truncated here, halves to the even below, as there: another pixel costs points of published accuracies.
        height, width = int(resize * height / short), int(resize * width / short)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return _resize(image, height, width, resample)[top : top + size, left : left + size]

    return crop


def crop_and_resize(size: int, resample: Resample = "bilinear") -> Transform:
    """The largest central square to ``size`` × ``size``: Keras' ``load_img(keep_aspect_ratio=True)``."""

    def crop(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resize(image, size, size, resample, (left, top, left + side, top + side))

    return crop


def center_crop(size: int) -> Transform:
    """Shorter side to ``size`` (bilinear, proportions kept), then the central square."""

    def crop(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        factor = size / min(height, width)
        height, width = max(size, round(height * factor)), max(size, round(width * factor))
        top, left = (height - size) // 2, (width - size) // 2
        return _resize(image, height, width)[top : top + size, left : left + size]

    return crop
