"""Images with a class for every pixel: the source that segmenters train on.

splits = segmented.load("camvid", ignored=(11,))
splits.train[0]      # {"image": uint8 [h, w, 3], "segmentation": uint8 [h, w], 255 where there is no class}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import checking
from cnnjax.data.formats import mask_folders
from cnnjax.data.formats.images import decode, header_size
from cnnjax.data.formats.mask_folders import Pair
from cnnjax.data.sources import Source, innermost
from cnnjax.data.splits import USUAL, Fractions, Splits, complete
from cnnjax.types import IGNORED, UserError


@dataclass(frozen=True)
class Segmented:
    """Images and masks in files, each read when its example is asked for."""

    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    ignored: tuple[int, ...] = ()  # values of masks that are no class, beside 255

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        image, labels = decode(pair.image, 3, pair.image), mask_folders.read_mask(pair.mask)
        if problem := self._problem(pair, labels, image.shape[:2]):
            raise UserError(problem)
        labels = np.where(np.isin(labels, self.ignored), IGNORED, labels).astype(np.uint8)
        return {"image": image, "segmentation": labels}

    def _problem(self, pair: Pair, labels: np.ndarray, shape: tuple[int, ...]) -> str:
        """Message where a mask does not fit the classes or its image, else nothing."""
        if labels.shape != shape:
            (height, width), (rows, columns) = shape, labels.shape
            return f"{pair.mask}: it has {columns}×{rows} pixels, its image {width}×{height}: make them equal"
        known = {*range(len(self.classes)), *self.ignored, IGNORED}
        if beyond := sorted(set(np.unique(labels).tolist()) - known):
            cure = f"--ignore {' '.join(map(str, beyond))} leaves such pixels out"
            return f"{pair.mask}: it has the values {beyond}, but there are {len(self.classes)} classes: {cure}"
        return ""

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which examples cannot be used, each with its file, empty for the others; see `checking`."""
        pairs = [self.pairs[i] for i in indices]
        found = []
        for pair, verdict in zip(pairs, checking.verdicts([pair.image for pair in pairs], cache), strict=True):
            if verdict.error:
                found.append(f"{pair.image}: {verdict.error}")
                continue
            shape = (verdict.width, verdict.height) if verdict.sideways else (verdict.height, verdict.width)
            try:
                found.append(self._problem(pair, mask_folders.read_mask(pair.mask), shape))
            except UserError as error:
                found.append(str(error))
        return found


def largest(parts: Iterable[Source]) -> tuple[int, int]:
    """Greatest height and greatest width of the images of all ``parts``, by their headers."""
    height = width = 1
    for source in parts:
        base, places = innermost(source)
        assert isinstance(base, Segmented)
        for place in places:
            columns, rows = header_size(base.pairs[place].image) or (1, 1)  # of one that cannot be read
            height, width = max(height, rows), max(width, columns)
    return height, width


def load(
    root: Path | str, classes: Sequence[str] = (), ignored: Sequence[int] = (), fractions: Fractions = USUAL
) -> Splits:
    """Opens a folder of images and masks, and prints where each split comes from; see `mask_folders`.

    Args:
      classes: names of the classes 0, 1, …; none: those in a file of the folder, else the values of the training masks.
      ignored: values of masks that are no class, beside 255.
      fractions: shares to cut off where there are no such splits.

    Raises:
      UserError: as `mask_folders.find`; a value to ignore that is beyond a byte.
    """
    root = Path(root).expanduser()
    parts = mask_folders.find(root)
    whole = parts.pop("train", None) or parts.pop("all")
    origins = {part: f"its {part}" for part in mask_folders.split_folders.NAMES if part in parts}
    if "all" not in parts and origins:
        origins = {"train": "its train", **origins}
    names = tuple(classes) or mask_folders.class_names(root)
    if not names:
        highest = max((value for value in mask_folders.values(whole) if value not in (*ignored, IGNORED)), default=0)
        names = tuple(str(value) for value in range(int(highest) + 1))
        print(f"{root}: no names of classes (--classes gives them); {len(names)} by the values of the masks")
    if len(names) > IGNORED:
        raise UserError(f"{root}: {len(names)} classes; 255 is the value of pixels that have none, so at most 255 fit")
    given: dict[str, Source] = {part: Segmented(tuple(pairs), names, tuple(ignored)) for part, pairs in parts.items()}
    return complete(root, Segmented(tuple(whole), names, tuple(ignored)), None, given, origins, fractions)
