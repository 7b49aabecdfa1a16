"""Data sets by name: ``digits`` (embedded), any tensorflow-datasets name, a folder of images, or annotations."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cnnjax import text
from cnnjax.data import annotations, prepared_boxes
from cnnjax.data.formats import split_folders, tfds
from cnnjax.data.formats.annotated import NoSplitError
from cnnjax.data.sources import Arrays, Source
from cnnjax.data.splits import FRACTION, USUAL, Fractions, Splits, complete, cut, say, shares
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
# The same of data sets whose publisher keeps the boxes of the test split.
BOXES = {
    "coco": {"train": "train", "valid": "validation"},
    "voc/2012": {"train": "train", "valid": "validation"},
}


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
        texts = {**tfds_splits(name, directory, chosen, fractions, TFDS.get(tfds.base_name(name))), **chosen}
        parts: dict[str, Source] = {part: tfds.tfds_split(name, each, directory) for part, each in texts.items()}
    except tfds.UnknownNameError as error:
        raise _unknown(name, error, [*EMBEDDED, *TFDS]) from error
    say(name, texts)
    return Splits(parts["train"], parts["valid"], parts.get("test"))


def tfds_splits(
    name: str,
    directory: Path,
    chosen: Mapping[str, str],
    fractions: Fractions,
    known: Mapping[str, str] | None,
) -> dict[str, str]:
    """Splits in tfds' syntax that are not ``chosen``: ``known`` ones, or the publisher's and cuts off train."""
    if not fractions.asked and known:
        return {part: each for part, each in known.items() if part not in chosen}
    if len(chosen) == len(split_folders.NAMES):
        return {}
    sizes = tfds.split_sizes(name, directory)
    parts = {part: split for part, names in split_folders.NAMES.items() for split in sizes if split.lower() in names}
    if "train" not in parts:
        raise UserError(f"{name} has no split train, only {', '.join(sizes)}: choose all three splits among them")
    missing = shares({**parts, **chosen}, fractions)
    count = sizes[parts["train"]]
    test = round(count * missing.get("test", 0))
    valid = round((count - test) * missing.get("valid", 0))
    if missing:
        train = parts["train"]
        cuts = {"train": f"{train}[{test}:{count - valid}]", "valid": f"{train}[{count - valid}:]"}
        cuts["test"] = f"{train}[:{test}]"
        parts |= {part: each for part, each in cuts.items() if part in missing or part == "train"}
    return parts


def _unknown(name: str, error: Exception, usual: Sequence[str]) -> UserError:
    near = get_close_matches(name.lower(), [*EMBEDDED, *tfds.known_names()], 3) or usual
    return UserError(f"{error}: did you mean {', '.join(near)}, or the path of a folder?")


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
    rest, test = cut(labels, np.arange(len(labels)), "test", 0.2, classes)
    train, valid = cut(labels, rest, "valid", 0.1, classes)
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
    return complete(root, whole, whole.labels, given, origins, fractions)


def load_boxes(
    name: str,
    data_dir: Path | None = None,
    splits: Mapping[str, str] | None = None,
    fractions: Fractions = USUAL,
    split: str | None = None,
) -> Splits:
    """Opens images with any number of boxes, and prints where each split comes from and how many faults labels have.

    Args:
      name: the path of annotations, see `load_annotated`; or a tfds name (``voc/2007``, ``coco/2017``, …).
      data_dir: as for `load`, also the next two; ``splits`` are of a tfds name.
      split: as for `load_annotated`, of a path.

    Raises:
      UserError: as `load_annotated` or `load`; a data set or a split has no boxes.
    """
    chosen = {part: each for part, each in (splits or {}).items() if each}
    path, base = Path(name).expanduser(), tfds.base_name(name)
    if path.exists() or (os.sep in name and base not in tfds.known_names()):
        if chosen:
            raise UserError(f"{name} has fixed splits; {sorted(chosen)} can be chosen for tfds data sets only")
        if re.match(r"\w", name) and base in tfds.known_names():
            print(text.one_line(f"{name} is taken for what lies here, not for the tfds data set of this name"))
        return load_annotated(path, fractions.test, fractions.valid, split=split, usual=fractions.usual)
    if split is not None:
        raise UserError(f"{name} is a tfds data set: choose its train, valid and test, and leave out --split {split}")
    directory, known = tfds.tfds_directory(data_dir), BOXES.get(name.split(":")[0]) or BOXES.get(base)
    try:
        texts = {**tfds_splits(name, directory, chosen, fractions, known), **chosen}
        parts = {part: prepared_boxes.open_split(name, each, directory) for part, each in texts.items()}
    except tfds.UnknownNameError as error:
        raise _unknown(name, error, ["voc/2007", "coco/2017"]) from error
    for part, each in parts.items():
        print(f"{name}, {part}: {len(each)} images, {annotations.counted(each.annotations.faults)}")
    say(name, texts)
    return Splits(parts["train"], parts["valid"], parts.get("test"))


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
        print(f"{path}, {part}: {len(each.records)} images, {annotations.counted(each.faults)}")
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
    return complete(path, annotations.AnnotatedImages(whole), labels, rest, origins, fractions)


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
    for folder in (path, path / "images"):  # YOLO has images/train beside labels/train
        there += sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    yaml = any(file.suffix in (".yaml", ".yml") for file in ([path] if path.is_file() else path.glob("*.y*ml")))
    ends = [re.search(rf"(?i)(?:^|_)({name})(?:\d{{4}})?$", each) for name in names for each in there]
    return list(dict.fromkeys([*(end[1] for end in ends if end), *(names if yaml else ())]))
