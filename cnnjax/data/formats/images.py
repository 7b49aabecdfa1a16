"""Image files: found, measured and decoded to uint8 [h, w, c], by `preparation`; what cannot be read is one error."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cnnjax.data import preparation
from cnnjax.types import UserError

MODES = preparation.MODES

# Suffix of a file → PIL's format, in which it must be able to read it.
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **{f".{name.lower()}": name for name in ("AVIF", "BMP", "GIF", "QOI", "WEBP")},
}
CURES = {"HEIF": "pip install pillow-heif", "AVIF": "pip install 'pillow>=11.3'"}


class CorruptImageError(UserError):
    """Image file that cannot be read: damaged, absent, of another kind, or too large."""


@contextlib.contextmanager
def _named(name: object) -> Iterator[None]:
    """Every exception in the block as the one error, which names the file."""
    try:
        yield
    except Exception as error:  # PIL's decoders raise any exception for damaged files, MemoryError among them
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else " ".join(str(error).split()) or type(error).__name__
        raise CorruptImageError(f"{name}: not a readable image ({reason[:300]})") from error


def decode(data: bytes | Path, channels: int, name: object, *, upright: bool = False, frame: int = 0) -> np.ndarray:
    """Image file → uint8 [h, w, channels]: see `preparation.read`.

    Args:
      name: shown in the error.
      upright: rotate the image by its EXIF orientation; tfds and published data sets ignore it.
      frame: image of an animation or a file of several pages, from 0.

    Raises:
      CorruptImageError: the file cannot be read.
    """
    with _named(name):
        return preparation.read(data, channels, upright=upright, frame=frame)


def frames(path: Path) -> int:
    """Number of images in an animation or a file of several pages; 1 of others.

    Raises:
      CorruptImageError: the file cannot be read.
    """
    with _named(path):
        return preparation.frames(path)


def examine(path: Path) -> tuple[int, int, bool]:
    """Size as `preparation.measure` gives it, of a file that `decode` can read; decoded to be sure.

    Raises:
      CorruptImageError: the file cannot be read.
    """
    with _named(path):
        return preparation.examine(path)


def header_size(path: Path, frame: int = 0) -> tuple[int, int] | None:
    """(width, height) as viewers show the image, or a frame of it, from its header; None if there is none."""
    try:
        with _named(path):
            return preparation.measure(path, frame)[:2]
    except CorruptImageError:
        return None


def is_image(path: Path) -> bool:
    """True if the name has the suffix of a format that can be read here."""
    form = SUFFIXES.get(path.suffix.lower())
    return form == "JPEG" or form in preparation.formats()


def files_below(root: Path) -> tuple[list[Path], Counter[str]]:
    """Images in a folder and its sub-folders, sorted, and the number of other files by suffix; nothing hidden."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    images = [path for path in found if is_image(path)]
    return sorted(images), Counter(path.suffix.lower() for path in found if not is_image(path))


def left_out(others: Mapping[str, int]) -> str:
    """Numbers of files by suffix, with what to do for images: ``12 .heic (pip install pillow-heif), 3 .txt``."""
    parts = []
    for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0])):
        cure = CURES.get(SUFFIXES.get(suffix, ""))
        parts.append(f"{count} {suffix or 'without suffix'}{f' ({cure})' if cure else ''}")
    return ", ".join(parts)
