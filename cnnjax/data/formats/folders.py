"""Class folders: image files under one sub-folder per class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import checking
from cnnjax.data.formats.images import decode, files_below, left_out
from cnnjax.types import UserError


@dataclass(frozen=True)
class Folder:
    """Image files under one sub-folder per class, each read when its example is asked for."""

    paths: tuple[Path, ...]  # of the images, by class and sorted; hidden files and folders are left out
    labels: np.ndarray  # int32 [n]
    classes: tuple[str, ...]  # names of the sub-folders, sorted
    channels: int = 3  # 1 or 3; files are converted, and rotated by their EXIF orientation

    @staticmethod
    def open(root: Path, channels: int = 3, classes: Sequence[str] | None = None) -> "Folder":
        """Lists ``root``; ``classes`` are the names to expect, such as those of the training folder.

        Prints the numbers of files that are no images, by suffix.

        Raises:
          UserError: no folder, fewer than two class folders, one without images, or other classes than expected.
        """
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected one with a sub-folder of images for each class")
        found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
        if not found:
            raise UserError(f"{root}: no class folders in it; expected one sub-folder of images for each class")
        if len(found) == 1:
            inner = root / found[0]
            hint = f"; did you mean {inner}?" if any(p.is_dir() for p in inner.iterdir()) else ""
            raise UserError(f"{root}: {found[0]!r} is its only class folder; a classifier needs two or more{hint}")
        if classes is not None and tuple(classes) != found:
            raise UserError(f"{root}: its classes {list(found)} are not those of the training set {list(classes)}")
        listed = [files_below(root / name) for name in found]
        files, others = [paths for paths, _ in listed], sum((counts for _, counts in listed), Counter[str]())
        left = f"left out: {left_out(others)}" if others else ""
        empty = [name for name, paths in zip(found, files, strict=True) if not paths]
        if empty:
            cure = "add some, or remove the folder(s)"
            raise UserError(f"{root}: no images in class folder(s) {empty}: {cure}{left and f' ({left})'}")
        if left:
            print(f"{root}: {left}")
        labels = np.repeat(np.arange(len(found), dtype=np.int32), [len(paths) for paths in files])
        return Folder(tuple(p for paths in files for p in paths), labels, found, channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = decode(self.paths[index], self.channels, self.paths[index], upright=True)
        return {"image": image, "label": self.labels[index]}

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which images cannot be used, each with its file, empty for the others; see `checking`."""
        paths = [self.paths[i] for i in indices]
        found = zip(paths, checking.verdicts(paths, cache), strict=True)
        return [f"{path}: {verdict.error}" if verdict.error else "" for path, verdict in found]
