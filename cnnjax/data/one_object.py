"""Photos that hold exactly one object, squeezed to one size and in memory, in the data set's splits or cut ones."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from cnnjax.data import annotations, box_host
from cnnjax.data.box_source import BoxSource, only
from cnnjax.types import UserError

SPLITS = {"train": ("train",), "valid": ("val", "valid"), "test": ("test",)}


class Examples(NamedTuple):
    """Photos of one size in memory, each with one object."""

    images: np.ndarray
    """uint8 [n, s, s, 3]."""
    labels: np.ndarray
    """int32 [n]."""
    boxes: np.ndarray
    """float32 [n, 4], xyxy in pixels."""
    classes: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """As batches have them."""
        return {"image": self.images, "label": self.labels, "box": self.boxes}


def splits(
    dataset: Path, size: int, test_fraction: float, valid_fraction: float, most: int | None = None
) -> dict[str, Examples]:
    """The splits "train", "valid" and "test": those that the data set names, else cut off, stratified, reproducibly.

    Args:
      dataset: a Pascal VOC folder, COCO JSON file or VIA file.
      size: pixels, height and width, that photos are squeezed to.
      test_fraction: of all photos, where there is no split test.
      valid_fraction: of the others, where there is no split val or valid.
      most: photos to take of each split, evenly spread; None: all.

    Raises:
      UserError: as ``annotations.open``; a photo is in two splits; too few photos to cut.
    """
    named = _named(dataset) or {"train": annotations.open(dataset)}
    for part, split in named.items():
        print(f"{dataset}, {part}: {len(split.records)} photos, {len(split.faults)} faults in their labels")
    parts: dict[Path, str] = {}
    for part, split in named.items():
        for record in split.records:
            if parts.setdefault(record.path, part) != part:
                raise UserError(f"{record.path} is in the splits {parts[record.path]} and {part}: take it out of one")
    found = {part: _examples(only(split, 1), size, most) for part, split in named.items()}
    for part, fraction in (("test", test_fraction), ("valid", valid_fraction)):
        if part not in found:
            found["train"], found[part] = _cut(found["train"], part, fraction)
    return found


def _named(dataset: Path) -> dict[str, annotations.Annotations]:
    """The splits that a folder names, with the classes of its training split; none where it names no training split."""
    found: dict[str, annotations.Annotations] = {}
    for part, names in SPLITS.items() if dataset.is_dir() else ():
        classes = found["train"].classes if found else None
        for name in names:
            with contextlib.suppress(annotations.NoSplitError):
                found[part] = annotations.open(dataset, name, classes=classes)
                break
        if "train" not in found:
            return {}
    return found


def _examples(chosen: annotations.Annotations, size: int, most: int | None) -> Examples:
    source = BoxSource(chosen)
    count = len(source) if most is None else min(len(source), most)
    moved, labels = [], []
    for index in np.linspace(0, len(source) - 1, count).astype(int):
        example = source[int(index)]
        moved.append(box_host.squeeze(example["image"], example["boxes"], size)[:2])
        labels.append(example["labels"][0])
    images, boxes = (np.stack(parts) for parts in zip(*moved, strict=True))
    return Examples(images, np.array(labels, np.int32), boxes[:, 0], tuple(chosen.classes))


def _cut(whole: Examples, part: str, fraction: float) -> tuple[Examples, Examples]:
    """What is kept and a stratified ``fraction`` that is cut off, always the same."""
    indices = np.arange(len(whole.labels))
    try:
        halves = train_test_split(indices, test_size=fraction, stratify=whole.labels, random_state=0)
    except ValueError as error:
        raise UserError(f"too few photos to cut a split {part} of {fraction} off {len(indices)}: {error}") from error
    kept, off = (Examples(whole.images[half], whole.labels[half], whole.boxes[half], whole.classes) for half in halves)
    return kept, off
