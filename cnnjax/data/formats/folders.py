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
        """Lists ``root``.

        Args:
          classes: names to expect, such as those of the training folder; some may have no folder, or no images.

        Prints the numbers of files that are no images, by suffix.

        Raises:
          UserError: no folder, no class folders or only one that holds such, one without images, or unknown classes.
        """
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected one with a sub-folder of images for each class")
        found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
        if not found:
            raise UserError(f"{root}: no class folders in it; expected one sub-folder of images for each class")
        listed = {name: files_below(root / name) for name in found}
        files, others = {name: paths for name, (paths, _) in listed.items()}, Counter[str]()
        for _, counts in listed.values():
            others += counts
        left = f"left out: {left_out(others)}" if others else ""
        inner = root / found[0]
        if len(found) == 1 and classes is None and files[found[0]] and all(p.parent != inner for p in files[found[0]]):
            raise UserError(
                f"{root}: {found[0]!r} is its only class folder and has only folders; did you mean {inner}?"
            )
        names = found if classes is None else tuple(classes)
        if unknown := [name for name in found if name not in names]:
            wrong = f"{root}: its classes {list(found)} are not those of the training set {list(names)}"
            raise UserError(f"{wrong}: rename or move {unknown}, or add them to the training set")
        empty = [name for name, paths in files.items() if not paths]
        if empty and (classes is None or len(empty) == len(found)):
            cure = "add some, or remove the folder(s)"
            raise UserError(f"{root}: no images in class folder(s) {empty}: {cure}{left and f' ({left})'}")
        if left:
            print(f"{root}: {left}")
        paths = [files.get(name, []) for name in names]
        labels = np.repeat(np.arange(len(names), dtype=np.int32), list(map(len, paths)))
        return Folder(tuple(path for each in paths for path in each), labels, names, channels)

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
