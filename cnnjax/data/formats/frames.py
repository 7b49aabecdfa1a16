"""Images of files that hold several: the frames of an animation (GIF, WebP, PNG), the pages of a TIFF."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax.data.formats import images
from cnnjax.data.formats.images import CorruptImageError
from cnnjax.types import Example


class Frame(NamedTuple):
    """A frame of a file, from 0; None: the file has one, or only its first is meant."""

    path: Path
    number: int | None = None

    @property
    def name(self) -> str:
        """Name of the file, cut to 32 characters, and the frame."""
        return self.path.name[:32] + ("" if self.number is None else f", frame {self.number}")


def listed(paths: Iterable[Path]) -> list[Frame]:
    """Every frame of the files; those that cannot be read are there once, to be named by who decodes them."""
    found = []
    for path in paths:
        try:
            count = images.frames(path)
        except CorruptImageError:
            count = 1
        found += [Frame(path, i) for i in range(count)] if count > 1 else [Frame(path)]
    return found


@dataclass(frozen=True)
class Frames:
    """Source of frames, upright, with label 0 of one class; each is read when its example is asked for."""

    frames: tuple[Frame, ...]
    channels: int = 3
    classes: tuple[str, ...] = ("unknown",)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Example:
        path, number = self.frames[index]
        name = path if number is None else f"{path}, frame {number}"
        pixels = images.decode(path, self.channels, name, upright=True, frame=number or 0)
        return {"image": pixels, "label": np.int32(0)}
