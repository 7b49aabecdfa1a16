"""What happens to one image on the host: decoding and changes of shape, uint8 in and out, by PIL."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cnnjax.types import UserError

Transform = Callable[[np.ndarray], np.ndarray]
MODES = {1: "L", 3: "RGB"}


class CorruptImageError(UserError):
    """Bytes that are no readable image."""


def decode(data: bytes | Path, channels: int, name: str = "") -> np.ndarray:
    """Image file → uint8 [h, w, channels]; grey, palette, CMYK and alpha are converted.

    Args:
      data: the file's bytes, or its path.
      channels: 1 (luma) or 3 (RGB).
      name: said in the error.

    Raises:
      CorruptImageError: the file is truncated, damaged, or no image.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            pixels = np.asarray(image.convert(MODES[channels]))
    # What PIL's decoders raise for damaged files.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{name or data}: not a readable image ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = np.asarray(_to_pil(image).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, image.shape[-1])


def squeeze(size: int) -> Transform:
    """To ``size`` × ``size``, whatever that does to the proportions (the chapter's way)."""
    return lambda image: image if image.shape[:2] == (size, size) else _resize(image, size, size)


def center_crop(size: int) -> Transform:
    """Shorter side to ``size`` (bilinear, proportions kept), then the central square."""

    def crop(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        factor = size / min(height, width)
        height, width = max(size, round(height * factor)), max(size, round(width * factor))
        top, left = (height - size) // 2, (width - size) // 2
        resized = image if image.shape[:2] == (height, width) else _resize(image, height, width)
        return resized[top : top + size, left : left + size]

    return crop
