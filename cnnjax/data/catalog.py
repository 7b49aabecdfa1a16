"""Data sets by name: ``digits`` (embedded), any tensorflow-datasets name, a folder of images, or annotations."""

import contextlib
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax import text
from cnnjax.data import annotations
from cnnjax.data.formats import split_folders, tfds
from cnnjax.data.formats.annotated import NoSplitError
from cnnjax.data.sources import Arrays, Source, Subset
from cnnjax.types import UserError

# Data set → its splits in tfds' syntax, where they are not the publisher's: the tail of train is the validation split;
# tf_flowers has one split only, cut as the chapter does: first 10 % test, next 15 % validation, the rest train.
TFDS = {
    "cifar10": {"train": "train[:45000]", "valid": "train[45000:]", "test": "test"},
    "cifar100": {"train": "train[:45000]", "valid": "train[45000:]", "test": "test"},
    "fashion_mnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "kmnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "mnist": {"train": "train[:55000]", "valid": "train[55000:]", "test": "test"},
    "tf_flowers": {"train": "train[25%:]", "valid": "train[10%:25%]", "test": "train[:10%]"},
}
FRACTION = 0.15  # share that is cut off for a split where none is given


class Fractions(NamedTuple):
    """Shares to cut off where there are no such splits.

    Attributes:
      test: share of the images; None: ``usual``, but 0 where a validation split is given.
      valid: share of the others; None: `FRACTION`.
      usual: share for test that is cut unasked.
    """

    test: float | None = None
    valid: float | None = None
    usual: float = FRACTION

    @property
    def asked(self) -> bool:
        """True where the user gave one."""
        return self.test is not None or self.valid is not None


USUAL = Fractions()


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; all have the same classes. ``test`` is None where nothing is set aside for it."""

    train: Source
    valid: Source
    test: Source | None

    @property
    def given(self) -> dict[str, Source]:
        """Splits that there are, by name."""
        return {part: source for part, source in vars(self).items() if source is not None}

    @property
    def last(self) -> tuple[str, Source]:
        """Name and examples of the split that is evaluated when training has ended: test or, without it, valid."""
        return ("valid", self.valid) if self.test is None else ("test", self.test)


def load(
    name: str,
    data_dir: Path | None = None,
    splits: Mapping[str, str] | None = None,
    channels: int = 3,
    fractions: Fractions = USUAL,
) -> Splits:
    """Opens a data set, and prints a line that says where each split comes from.

    Splits that are missing are cut off train, the same each time, in the shares of ``fractions``.

    Args:
      name: ``digits``, a tfds name (``fashion_mnist``, ``emnist/balanced``, ``mnist:3.0.1``, …), or the path of a
        folder of images.
      data_dir: folder of the tfds data sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      splits: tfds split syntax for any of train, valid, test, in place of the usual ones.
      channels: 1 or 3; the images of a folder are converted to it.

    Raises:
      UserError: unknown name, data set not (or half) prepared, a bad split, a bad folder.
    """
    chosen = {part: each for part, each in (splits or {}).items() if each}
    if chosen and (name in EMBEDDED or is_folder(name)):
        raise UserError(f"{name} has fixed splits; {sorted(chosen)} can be chosen for tfds data sets only")
    if name in EMBEDDED and fractions.asked:
        raise UserError(f"{name} has fixed splits: leave out the fractions for test and valid")
    if note := namesake(name):
        print(note)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if is_folder(name):
        return folder(Path(name).expanduser(), channels, fractions)
    directory = tfds.tfds_directory(data_dir)
    try:
        texts = {**_tfds_splits(name, directory, chosen, fractions), **chosen}
        parts: dict[str, Source] = {part: tfds.tfds_split(name, each, directory) for part, each in texts.items()}
    except tfds.UnknownNameError as error:
        near = get_close_matches(name.lower(), [*EMBEDDED, *tfds.known_names()], 3) or [*EMBEDDED, *TFDS]
        raise UserError(f"{error}: did you mean {', '.join(near)}, or the path of a folder?") from error
    _say(name, texts)
    return Splits(parts["train"], parts["valid"], parts.get("test"))


def _tfds_splits(name: str, directory: Path, chosen: Mapping[str, str], fractions: Fractions) -> dict[str, str]:
    """Splits in tfds' syntax that are not ``chosen``: the publisher's, and those that are cut off the ends of train."""
    if not fractions.asked and (known := TFDS.get(tfds.base_name(name))):
        return {part: each for part, each in known.items() if part not in chosen}
    if len(chosen) == len(split_folders.NAMES):
        return {}
    sizes = tfds.split_sizes(name, directory)
    parts = {part: split for part, names in split_folders.NAMES.items() for split in sizes if split.lower() in names}
    if "train" not in parts:
        raise UserError(f"{name} has no split train, only {', '.join(sizes)}: choose all three splits among them")
    shares = _shares({**parts, **chosen}, fractions)
    count = sizes[parts["train"]]
    test = round(count * shares.get("test", 0))
    valid = round((count - test) * shares.get("valid", 0))
    if shares:
        train = parts["train"]
        cut = {"train": f"{train}[{test}:{count - valid}]", "valid": f"{train}[{count - valid}:]"}
        cut["test"] = f"{train}[:{test}]"
        parts |= {part: each for part, each in cut.items() if part in shares or part == "train"}
    return parts


def _shares(given: Container[str], fractions: Fractions) -> dict[str, float]:
    """Shares to cut off train for the splits that are not ``given``: for test of all, then for valid of the others.

    Raises:
      UserError: nothing is left to validate on.
    """
    unasked = 0.0 if "valid" in given else fractions.usual
    test = unasked if fractions.test is None else fractions.test
    valid = FRACTION if fractions.valid is None else fractions.valid
    if "valid" not in given and not valid:
        raise UserError("there is no validation split, and 0 is its fraction: give a --valid-fraction above 0")
    return {part: share for part, share in (("test", test), ("valid", valid)) if part not in given and share}


def _say(name: object, origins: Mapping[str, str]) -> None:
    """Prints where each split comes from."""
    parts = [f"{part} = {origins[part]}" for part in split_folders.NAMES if part in origins]
    none = "" if "test" in origins else "; no test: valid is evaluated at the end"
    print(text.one_line(f"{name}: {'; '.join(parts)}{none}"))


def is_folder(name: str) -> bool:
    """True for a folder that exists, or a path with a separator that does not begin with a tfds name."""
    base = tfds.base_name(name)
    if not name or name in EMBEDDED or base in TFDS:
        return False
    return Path(name).expanduser().is_dir() or (os.sep in name and base not in tfds.known_names())


def namesake(name: str) -> str:
    """Note for a name that is a folder's here and a data set's: it says which of the two is taken; else ""."""
    if os.sep in name or not Path(name).is_dir():
        return ""
    if not is_folder(name):
        return f"{name} is taken for the data set of this name; write ./{name} for the folder"
    known = re.fullmatch(r"\w+", name) and name in tfds.known_names()
    return f"{name} is taken for the folder here, not for the tfds data set of this name" if known else ""


def digits() -> Splits:
    """Scikit-learn's 1,797 scanned 8×8 digits (UCI, Alpaydin and Kaynak 1998), values 0 … 16 scaled to 0 … 255.

    A stratified 20 % is the test split, a stratified 10 % of the rest the validation split, always the same ones.
    """
    from sklearn.datasets import load_digits  # costs most of a second

    data, classes = load_digits(), tuple("0123456789")
    images, labels = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None], data.target.astype(np.int32)
    rest, test = _cut(labels, np.arange(len(labels)), "test", 0.2, classes)
    train, valid = _cut(labels, rest, "valid", 0.1, classes)
    return Splits(*(Arrays({"image": images[part], "label": labels[part]}, classes) for part in (train, valid, test)))


EMBEDDED: Mapping[str, Callable[[], Splits]] = {"digits": digits}


def folder(root: Path, channels: int = 3, fractions: Fractions = USUAL) -> Splits:
    """Opens a folder with one sub-folder per class, or with splits (``train``, ``valid``, ``test``) of such.

    Splits that are missing are cut off stratified, see `load`.

    Raises:
      UserError: as ``split_folders.find`` and ``open_parts``; fewer than two classes; too few images to cut.
    """
    places = split_folders.find(root)
    given = split_folders.open_parts(places, channels)
    whole = given.pop(next(iter(places)))
    if len(whole.classes) < 2:
        raise UserError(f"{root}: {whole.classes[0]!r} is its only class folder; a classifier needs two or more")
    origins = {part: str(path.relative_to(root)) for part, path in places.items() if part != "all"}
    return _complete(root, whole, whole.labels, given, origins, fractions)


def _complete(
    name: object,
    whole: Source,
    labels: np.ndarray | None,
    given: Mapping[str, Source],
    origins: Mapping[str, str],
    fractions: Fractions,
) -> Splits:
    """Splits ``given`` and, cut off ``whole``, the others: the same each time, stratified by ``labels``.

    Args:
      origins: split → where it comes from, to be printed; without train, ``whole`` is no split by itself.
    """
    train, parts, said = np.arange(len(whole)), dict(given), {"train": "the rest", **origins}
    for part, share in _shares(given, fractions).items():
        train, cut = _cut(labels, train, part, share, whole.classes)
        parts[part] = Subset(whole, cut)
        others = (
            "the others" if part == "valid" and "test" in parts.keys() - given.keys() else origins.get("train", "all")
        )
        said[part] = f"{100 * share:g} % of {others}{'' if labels is None else ', by class'}"
    _say(name, said)
    return Splits(Subset(whole, train), parts["valid"], parts.get("test"))


def _cut(
    labels: np.ndarray | None, indices: np.ndarray, part: str, fraction: float, classes: Sequence[str]
) -> list[np.ndarray]:
    """Indices that are kept, and those that are cut off for a split."""
    from sklearn.model_selection import train_test_split  # costs most of a second

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


def load_annotated(
    path: Path,
    test_fraction: float | None = None,
    valid_fraction: float | None = None,
    objects: int | None = None,
    split: str | None = None,
    usual: float = FRACTION,
) -> Splits:
    """Opens `annotations.AnnotatedImages` in the splits that their folder names; see `load` for those that are missing.

    Prints a line for each named split, and one that says where each split comes from.

    Args:
      path: a Pascal VOC folder, a COCO JSON file, a VIA file, …; see `annotations.open`.
      test_fraction: share of all images, where there is no split test; see `Fractions`, also for the next two.
      valid_fraction: share of the others, where there is no validation split.
      usual: share for test that is cut unasked.
      objects: number of boxes of the images to take; 1: cut stratified by class; None: all images.
      split: the only one to take, which is cut, as `annotations.open` has it; None: those that are named so, or all.

    Raises:
      UserError: as ``open_annotated``; an image is in two splits; too few images to cut.
    """
    named = open_annotated(path) if split is None else {"all": annotations.open(path, split)}
    for part, each in named.items():
        print(f"{path}, {part}: {len(each.records)} images, {len(each.faults)} faults in their labels")
    parts: dict[Path, str] = {}
    for part, record in ((part, record) for part, each in named.items() for record in each.records):
        if parts.setdefault(record.path, part) != part:
            raise UserError(f"{record.path} is in the splits {parts[record.path]} and {part}: take it out of one")
    found = {
        part: each if objects is None else annotations.with_object_count(each, objects) for part, each in named.items()
    }
    given: dict[str, Source] = {part: annotations.AnnotatedImages(each) for part, each in found.items()}
    whole, origins = found.get("train") or found["all"], {part: f"its {part}" for part in named if part != "all"}
    labels = np.array([record.labels[0] for record in whole.records]) if objects == 1 else None
    rest = {part: source for part, source in given.items() if part not in ("train", "all")}
    fractions = Fractions(test_fraction, valid_fraction, usual)
    return _complete(path, annotations.AnnotatedImages(whole), labels, rest, origins, fractions)


def open_annotated(path: Path, check: bool = False, cache: Path | None = None) -> dict[str, annotations.Annotations]:
    """Opens annotations by split, with the classes of the training split; without one all images as the split ``all``.

    Args:
      check: as for `annotations.open`.
      cache: as for `annotations.open`.

    Raises:
      UserError: as ``annotations.open``.
    """
    path, found = path.expanduser(), dict[str, annotations.Annotations]()
    for part, names in split_folders.NAMES.items():
        classes = found["train"].classes if "train" in found else None
        for name in _split_names(path, (*names, "trainval") if part == "train" else names):
            with contextlib.suppress(NoSplitError, annotations.NoAnnotationsError):
                found[part] = annotations.open(path, name, classes=classes, check=check, cache=cache)
                break
    if found and "train" not in found:
        print(f"{path}: its split {' and '.join(found)} is not used, as there is no split train: all images are read")
        found = {}
    return found or {"all": annotations.open(path, check=check, cache=cache)}


def _split_names(path: Path, names: Sequence[str]) -> list[str]:
    """Names of splits among ``names``, in any case, that a folder or a YAML file may have: a reader tells if it has."""
    lists = ("ImageSets/Main/*.txt", "*.json", "annotations/*.json", "*.csv", "annotations/*.csv")
    there = [file.stem for pattern in lists for file in sorted(path.glob(pattern))]
    there += sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    yaml = any(file.suffix in (".yaml", ".yml") for file in ([path] if path.is_file() else path.glob("*.y*ml")))
    ends = [re.search(rf"(?i)(?:^|_)({name})(?:\d{{4}})?$", each) for name in names for each in there]
    return list(dict.fromkeys([*(end[1] for end in ends if end), *(names if yaml else ())]))
