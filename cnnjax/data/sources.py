"""Sources: random access to labelled images, ``source[i] → {"image": uint8 [h, w, c], "label": int}``."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnnjax.data import host
from cnnjax.types import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
DECODE_THREADS = 8


class Source(Protocol):
    """Labelled images by index."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Arrays:
    """Images in memory.

    Attributes:
      images: uint8 [n, h, w, c], c = 1 or 3.
      labels: int32 [n], 0 … len(classes) − 1.
      classes: their names.

    Raises:
      UserError: wrong rank, dtype, channel count or length, or a label out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] not in host.MODES or self.images.dtype != np.uint8:
            raise UserError(f"images must be uint8 [n, h, w, 1 or 3], got {self.images.dtype} {self.images.shape}")
        if self.labels.shape != self.images.shape[:1] or not np.issubdtype(self.labels.dtype, np.integer):
            raise UserError(
                f"labels must be integers [{len(self.images)}], one per image, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index].astype(np.int32)}


def check_labels(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raises UserError if a label is not an index into ``classes``, naming the first."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise UserError(
            f"labels must lie in 0 … {len(classes) - 1} ({len(classes)} classes): "
            f"example {wrong[0]} has label {labels[wrong[0]]} ({len(wrong)} such examples)"
        )


@dataclass(frozen=True)
class Subset:
    """The examples of ``source`` at ``indices``."""

    source: Source
    indices: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the whole."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


@dataclass(frozen=True)
class Folder:
    """Image files under one sub-folder per class; read when asked for.

    Attributes:
      paths: of the images, by class and sorted; hidden files and folders are left out.
      labels: int32 [n].
      classes: names of the sub-folders, sorted.
      channels: 1 or 3; files are converted, and turned as their EXIF orientation says.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    channels: int = 3

    @staticmethod
    def open(root: Path, channels: int = 3, classes: Sequence[str] | None = None) -> "Folder":
        """Lists ``root``.

        Args:
          classes: the class names to expect, e.g. those of the training folder.

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
        files = [images_below(root / name) for name in found]
        empty = [name for name, paths in zip(found, files, strict=True) if not paths]
        if empty:
            raise UserError(f"{root}: no images in class folder(s) {empty}: add some, or remove the folder(s)")
        labels = np.repeat(np.arange(len(found), dtype=np.int32), [len(paths) for paths in files])
        return Folder(tuple(p for paths in files for p in paths), labels, found, channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = host.decode(self.paths[index], self.channels, self.paths[index], upright=True)
        return {"image": image, "label": int(self.labels[index])}


def images_below(root: Path) -> list[Path]:
    """Paths of the images in a folder and those in it, sorted; hidden files and folders are left out."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


@dataclass(frozen=True)
class Tfds:
    """A split prepared by tensorflow-datasets, images decoded here (its own decoding is ten times slower)."""

    records: Any  # a tfds data source, or a list
    classes: tuple[str, ...]
    channels: int
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, no example {index}")
        record = self._fetch(lambda: self.records[index])
        name = f"{self.name}, example {index}"
        return {"image": host.decode(record["image"], self.channels, name), "label": int(record["label"])}

    def fetched(self) -> "Tfds":
        """The same with all records in memory, still encoded: read in one go, five times faster than singly."""
        return replace(self, records=self._fetch(lambda: [*self.records.__getitems__(range(len(self.records)))]))

    def _fetch(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        # array_record reports a damaged file as one of these.
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name} is damaged ({reason}): delete its folder and prepare it again") from error


def labels(source: Source) -> np.ndarray:
    """The class of every example, int32 [n]; tfds data sets are read for it."""
    if isinstance(source, Arrays | Folder):
        return source.labels
    if isinstance(source, Subset):
        return labels(source.source)[source.indices]
    return np.array([source[i]["label"] for i in range(len(source))], np.int32)


def _read(source: Source, index: int) -> tuple[dict[str, Any] | None, str]:
    try:
        return source[index], ""
    except host.CorruptImageError as error:
        return None, str(error)


def readable(source: Source) -> tuple[Source, list[str]]:
    """Decodes everything once; returns what can be read, and the errors of what cannot.

    Raises:
      UserError: nothing can be read.
    """
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        errors = list(pool.map(lambda index: _read(source, index)[1], range(len(source))))
    good = np.flatnonzero([not error for error in errors])
    if not len(good):
        raise UserError(f"none of the {len(source)} images can be read{f', such as {errors[0]}' if errors else ''}")
    return (source if len(good) == len(source) else Subset(source, good)), [error for error in errors if error]


def in_memory(source: Source, transform: host.Transform | None = None) -> Arrays:
    """Decodes the whole source into arrays, with threads.

    Args:
      transform: gives every image the same shape.

    Raises:
      CorruptImageError: counting the files that cannot be read and naming the first.
      UserError: there is none, or the images differ in shape (and there is no transform).
    """
    if not len(source):
        raise UserError("there are no images to read")

    def read(index: int) -> tuple[dict[str, Any] | None, str]:
        example, error = _read(source, index)
        if example and transform:
            example["image"] = transform(example["image"])
        return example, error

    source = source.fetched() if isinstance(source, Tfds) else source
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        results = list(pool.map(read, range(len(source))))
    errors = [error for _, error in results if error]
    if errors:
        raise host.CorruptImageError(f"{errors[0]}; {len(errors)} of {len(source)} images are corrupt")
    examples = [example for example, _ in results if example]
    shapes = {example["image"].shape for example in examples}
    if len(shapes) > 1:
        raise UserError(f"images of different shapes, such as {sorted(shapes)[:3]}: give a size to bring them to")
    labels = np.array([example["label"] for example in examples], np.int32)
    return Arrays(np.stack([example["image"] for example in examples]), labels, tuple(source.classes))


def in_memory_if_small(source: Source, transform: host.Transform | None, limit: int) -> Source:
    """``in_memory`` if that takes at most ``limit`` bytes, else the source as it is; for the errors see there."""
    if (isinstance(source, Arrays) and transform is None) or not len(source):
        return source
    first, _ = _read(source, 0)  # one that is corrupt is counted with the others
    if first is None:
        return in_memory(source, transform)
    image = first["image"] if transform is None else transform(first["image"])
    return in_memory(source, transform) if len(source) * image.nbytes <= limit else source
