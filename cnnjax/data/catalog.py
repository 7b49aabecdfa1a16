"""Data sets by name: ``digits`` (embedded), any tensorflow-datasets name, a folder of images, or annotations."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnjax.data import annotations
from cnnjax.data.formats import tfds
from cnnjax.data.formats.annotated import NoSplitError
from cnnjax.data.formats.folders import Folder
from cnnjax.data.sources import Arrays, Source, Subset
from cnnjax.types import UserError

# Data set → its splits in tfds' syntax. Where the publisher has no validation split, the tail of train serves;
# tf_flowers has one split only, cut as the chapter does: first 10 % test, next 15 % validation, the rest train.
TFDS = {
    "cifar10": {"train": "train[:45000]", "valid": "train[45000:]", "test": "test"},
    "cifar100": {"train": "train[:45000]", "valid": "train[45000:]", "test": "test"},
    "fashion_mnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "kmnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "mnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "tf_flowers": {"train": "train[25%:]", "valid": "train[10%:25%]", "test": "train[:10%]"},
}
OTHER_TFDS = {"train": "train[:90%]", "valid": "train[90%:]", "test": "test"}


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; all have the same classes."""

    train: Source
    valid: Source
    test: Source


def load(
    name: str,
    data_dir: Path | None = None,
    splits: Mapping[str, str] | None = None,
    channels: int = 3,
    fractions: tuple[float, float] = (0.15, 0.15),
) -> Splits:
    """Opens a data set.

    Args:
      name: ``digits``, a tfds name (``fashion_mnist``, ``emnist/balanced``, ``mnist:3.0.1``, …), or the path of a
        folder of images.
      data_dir: folder of the tfds data sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      splits: tfds split syntax for any of train, valid, test, in place of the usual ones.
      channels: 1 or 3; the images of a folder are converted to it.
      fractions: shares of a folder for test and validation, see `folder`.

    Raises:
      UserError: unknown name, data set not (or half) prepared, a bad split, a bad folder.
    """
    chosen = {part: text for part, text in (splits or {}).items() if text}
    if chosen and (name in EMBEDDED or is_folder(name)):
        raise UserError(f"{name} has fixed splits; {sorted(chosen)} can be chosen for tfds data sets only")
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if is_folder(name):
        return folder(Path(name).expanduser(), channels, fractions)
    directory = tfds.tfds_directory(data_dir)
    texts = {**TFDS.get(tfds.base_name(name), OTHER_TFDS), **chosen}
    try:
        return Splits(**{part: tfds.tfds_split(name, text, directory) for part, text in texts.items()})
    except tfds.UnknownNameError as error:
        near = get_close_matches(name.lower(), [*EMBEDDED, *tfds.known_names()], 3) or [*EMBEDDED, *TFDS]
        raise UserError(f"{error}: did you mean {', '.join(near)}, or the path of a folder?") from error


def is_folder(name: str) -> bool:
    """True for a folder that exists, or a path with a separator that does not begin with a tfds name."""
    base = tfds.base_name(name)
    if not name or name in EMBEDDED or base in TFDS:
        return False
    return Path(name).expanduser().is_dir() or (os.sep in name and base not in tfds.known_names())


def digits() -> Splits:
    """Scikit-learn's 1,797 scanned 8×8 digits (UCI, Alpaydin and Kaynak 1998), values 0 … 16 scaled to 0 … 255.

    A stratified 20 % is the test split, a stratified 10 % of the rest the validation split, always the same ones.
    """
    data, classes = load_digits(), tuple("0123456789")
    images, labels = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None], data.target.astype(np.int32)
    rest, test = _cut(labels, np.arange(len(labels)), "test", 0.2, classes)
    train, valid = _cut(labels, rest, "valid", 0.1, classes)
    return Splits(*(Arrays({"image": images[part], "label": labels[part]}, classes) for part in (train, valid, test)))


EMBEDDED: Mapping[str, Callable[[], Splits]] = {"digits": digits}


def folder(root: Path, channels: int = 3, fractions: tuple[float, float] = (0.15, 0.15)) -> Splits:
    """Opens a folder with one sub-folder per class, or with ``train``, ``test`` (and ``valid`` or ``val``) of such.

    Splits that are not given are cut off stratified, the same each time: ``fractions[0]`` for test, then
    ``fractions[1]`` of the rest for validation.

    Raises:
      UserError: see ``Folder.open``; a test or validation folder without a train folder; too few images to cut.
    """
    named = {part: next((root / n for n in names if _has_folders(root / n)), None) for part, names in _PARTS.items()}
    if named["train"] is None and (others := [path.name for path in named.values() if path]):
        raise UserError(f"{root}: it has {' and '.join(others)} but no folder train with a sub-folder for each class")
    whole = Folder.open(named["train"] or root, channels)
    given: dict[str, Source] = {
        part: Folder.open(path, channels, whole.classes) for part, path in named.items() if path and part != "train"
    }
    return _complete(whole, whole.labels, given, fractions)


_PARTS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}


def _has_folders(path: Path) -> bool:
    # A folder called train may also be a class, of vehicles for example: it then has images, not folders.
    return path.is_dir() and any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())


def _complete(
    whole: Source, labels: np.ndarray | None, given: Mapping[str, Source], fractions: tuple[float, float]
) -> Splits:
    """Splits ``given`` and, cut off ``whole``, the others: the same each time, stratified by ``labels``."""
    train, parts = np.arange(len(whole)), dict(given)
    for part, fraction in zip(("test", "valid"), fractions, strict=True):
        if part not in given:
            train, cut = _cut(labels, train, part, fraction, whole.classes)
            parts[part] = Subset(whole, cut)
    return Splits(train=Subset(whole, train), valid=parts["valid"], test=parts["test"])


def _cut(
    labels: np.ndarray | None, indices: np.ndarray, part: str, fraction: float, classes: Sequence[str]
) -> list[np.ndarray]:
    """Indices that are kept, and those that are cut off for a split."""
    strata = None if labels is None else labels[indices]
    try:
        return train_test_split(indices, test_size=fraction, stratify=strata, random_state=0)
    except ValueError as error:
        few = f"too few images to cut a {part} split off the {len(indices)}"
        if strata is not None:
            counts = np.bincount(strata, minlength=len(classes))
            fewest = int(counts.argmin())
            few += f" in {len(counts)} classes, the fewest being {counts[fewest]} of {classes[fewest]!r}"
        raise UserError(f"{few}: add images, or make train, valid and test by hand") from error


def load_annotated(path: Path, test_fraction: float, valid_fraction: float, objects: int | None = None) -> Splits:
    """Opens `annotations.AnnotatedImages` in the splits that their folder names, else cut off, the same each time.

    Prints a line for each named split.

    Args:
      path: a Pascal VOC folder, a COCO JSON file, a VIA file, …; see `annotations.open`.
      test_fraction: share of all images, where there is no split test.
      valid_fraction: share of the others, where there is no split val or valid.
      objects: number of boxes of the images to take; 1: cut stratified by class; None: all images.

    Raises:
      UserError: as ``annotations.open``; an image is in two splits; too few images to cut.
    """
    named = _named(path) or {"train": annotations.open(path)}
    for part, split in named.items():
        print(f"{path}, {part}: {len(split.records)} images, {len(split.faults)} faults in their labels")
    parts: dict[Path, str] = {}
    for part, record in ((part, record) for part, split in named.items() for record in split.records):
        if parts.setdefault(record.path, part) != part:
            raise UserError(f"{record.path} is in the splits {parts[record.path]} and {part}: take it out of one")
    found = {
        part: split if objects is None else annotations.with_object_count(split, objects)
        for part, split in named.items()
    }
    given: dict[str, Source] = {part: annotations.AnnotatedImages(split) for part, split in found.items()}
    labels = np.array([record.labels[0] for record in found["train"].records]) if objects == 1 else None
    return _complete(given.pop("train"), labels, given, (test_fraction, valid_fraction))


def _named(path: Path) -> dict[str, annotations.Annotations]:
    """Splits that a folder names, with the classes of its training split; none where it names no training split."""
    found: dict[str, annotations.Annotations] = {}
    for part, names in _PARTS.items() if path.is_dir() or path.suffix in (".yaml", ".yml") else ():
        classes = found["train"].classes if found else None
        for name in names:
            with contextlib.suppress(NoSplitError, annotations.NoAnnotationsError):
                found[part] = annotations.open(path, name, classes=classes)
                break
        if "train" not in found:
            return {}
    return found
