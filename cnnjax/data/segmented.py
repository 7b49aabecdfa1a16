"""Images with a class for every pixel: the source that segmenters train on.

splits = segmented.load("camvid", ignored=(11,))
splits.train[0]      # {"image": uint8 [h, w, 3], "segmentation": uint8 [h, w], 255 where there is no class}
"""

from collections.abc import Sequence
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
        pair, labels = self.pairs[index], self.labels(index)
        image = decode(pair.image, 3, pair.image, upright=True)
        if image.shape[:2] != labels.shape:  # the mask may be of the image as it is stored
            image = decode(pair.image, 3, pair.image)
        if problem := self._size_problem(pair, labels, image.shape[:2]):
            raise UserError(problem)
        return {"image": image, "segmentation": labels}

    def labels(self, index: int) -> np.ndarray:
        """Classes of an image's pixels, uint8 [h, w], ``IGNORED`` where there is none; the image is not read.

        Raises:
          UserError: as `mask_folders.read_mask`, or a value is no class.
        """
        pair = self.pairs[index]
        labels = mask_folders.read_mask(pair.mask)
        known = {*range(len(self.classes)), *self.ignored, IGNORED}
        if beyond := sorted(set(np.unique(labels).tolist()) - known):
            cure = f"--ignore {' '.join(map(str, beyond))} leaves such pixels out"
            raise UserError(
                f"{pair.mask}: it has the values {beyond}, but there are {len(self.classes)} classes: {cure}"
            )
        return np.where(np.isin(labels, self.ignored), IGNORED, labels).astype(np.uint8)

    def sizes(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of images as they are shown, by their headers; (1, 1) of one that cannot be read."""
        return [(header_size(self.pairs[i].image) or (1, 1))[::-1] for i in indices]

    def _size_problem(self, pair: Pair, labels: np.ndarray, *shapes: tuple[int, ...]) -> str:
        """Message where a mask has none of its image's ``shapes``, as shown and as stored, else nothing."""
        if labels.shape in shapes:
            return ""
        (height, width), (rows, columns) = shapes[0], labels.shape
        return f"{pair.mask}: it has {columns}×{rows} pixels, its image {width}×{height}: make them equal"

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which examples cannot be used, each with its file, empty for the others; see `checking`."""
        verdicts = checking.verdicts([self.pairs[i].image for i in indices], cache)
        return [self._reason(int(index), verdict) for index, verdict in zip(indices, verdicts, strict=True)]

    def _reason(self, index: int, verdict: checking.Verdict) -> str:
        pair, shown = self.pairs[index], (verdict.height, verdict.width)
        if verdict.error:
            return f"{pair.image}: {verdict.error}"
        try:
            return self._size_problem(pair, self.labels(index), shown, shown[::-1] if verdict.sideways else shown)
        except UserError as error:
            return str(error)


def _base(source: Source) -> tuple[Segmented, np.ndarray]:
    base, places = innermost(source)
    assert isinstance(base, Segmented)
    return base, places


def sizes(source: Source) -> list[tuple[int, int]]:
    """(height, width) of every image, by its header."""
    base, places = _base(source)
    return base.sizes(places)


def class_pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class, and pixels of all the images that show it, int64 [classes]; every mask is read."""
    base, places = _base(source)
    counts = [np.bincount(base.labels(i).ravel(), minlength=IGNORED + 1)[: len(base.classes)] for i in places]
    pixels = np.array(counts, np.int64).reshape(-1, len(base.classes))
    return pixels.sum(0), (pixels.sum(1, keepdims=True) * (pixels > 0)).sum(0)


def load(
    root: Path | str, classes: Sequence[str] = (), ignored: Sequence[int] = (), fractions: Fractions = USUAL
) -> Splits:
    """Opens a folder of images and masks, and prints where each split comes from; see `mask_folders`.

    Args:
      classes: names of the classes 0, 1, …; none: those in a file of the folder, else the values of the training masks.
      ignored: values of masks that are no class, beside 255.
      fractions: shares to cut off where there are no such splits.

    Raises:
      UserError: as `mask_folders.find` and ``class_names``; more classes than a byte has values.
    """
    root = Path(root).expanduser()
    parts = mask_folders.find(root)
    origins = {part: f"its {part}" for part in parts if part != "all"}
    whole = parts.pop("train", None) or parts.pop("all")
    names = tuple(classes) or mask_folders.class_names(root)
    if not names:
        highest = max((value for value in mask_folders.values(whole) if value not in (*ignored, IGNORED)), default=0)
        names = tuple(str(value) for value in range(int(highest) + 1))
        print(f"{root}: no names of classes (--classes gives them); {len(names)} by the values of the masks")
    if len(names) > IGNORED:
        raise UserError(f"{root}: {len(names)} classes; 255 is the value of pixels that have none, so at most 255 fit")
    given: dict[str, Source] = {part: Segmented(tuple(pairs), names, tuple(ignored)) for part, pairs in parts.items()}
    return complete(root, Segmented(tuple(whole), names, tuple(ignored)), None, given, origins, fractions)
