"""Data sets by name: ``digits`` (embedded), any tensorflow-datasets name, or a folder of images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnjax.data.sources import Arrays, Folder, Source, Subset, Tfds
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


def load(name: str, data_dir: Path | None = None, splits: Mapping[str, str] | None = None, channels: int = 3) -> Splits:
    """Opens a data set.

    Args:
      name: ``digits``, a tfds name (``fashion_mnist``, …), or the path of a folder of images.
      data_dir: where tfds data sets lie; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      splits: tfds split syntax for any of train, valid, test, in place of the usual ones.
      channels: what the images of a folder are converted to, 1 or 3.

    Raises:
      UserError: unknown name, data set not (or half) prepared, a bad split, a bad folder.
    """
    chosen = {part: text for part, text in (splits or {}).items() if text}
    if chosen and (name == "digits" or _is_folder(name)):
        raise UserError(f"{name} has fixed splits; {sorted(chosen)} can be chosen for tfds data sets only")
    if name == "digits":
        return digits()
    if _is_folder(name):
        return folder(Path(name), channels)
    directory = data_dir or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    texts = {**TFDS.get(name, OTHER_TFDS), **chosen}
    return Splits(**{part: tfds_split(name, text, directory) for part, text in texts.items()})


def _is_folder(name: str) -> bool:
    return os.sep in name or Path(name).is_dir()


def digits() -> Splits:
    """Scikit-learn's 1,797 scanned 8×8 digits (UCI, Alpaydin and Kaynak 1998), values 0 … 16 spread over 0 … 255.

    A stratified 20 % is the test split, a stratified 10 % of the rest the validation split, always the same ones.
    """
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Arrays(images, data.target.astype(np.int32), tuple(str(digit) for digit in range(10)))
    rest, test = _stratified(everything.labels, 0.2)
    train, valid = _stratified(everything.labels[rest], 0.1)
    return Splits(
        *(
            Arrays(images[part], everything.labels[part], everything.classes)
            for part in (rest[train], rest[valid], test)
        )
    )


def _stratified(labels: np.ndarray, fraction: float) -> list[np.ndarray]:
    return train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)


def folder(root: Path, channels: int = 3) -> Splits:
    """A folder with one sub-folder per class, or with ``train``, ``test`` (and ``valid`` or ``val``) of such.

    What is not given is cut off stratified, reproducibly: 15 % for test, then 15 % of the rest for validation.
    """
    named = {part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in _PARTS.items()}
    whole = Folder.open(named["train"] or root, channels)
    given = {
        part: Folder.open(path, channels, whole.classes) for part, path in named.items() if path and part != "train"
    }
    train = np.arange(len(whole))
    parts: dict[str, Source] = dict(given)
    for part in ("test", "valid"):
        if part not in given:
            try:
                kept, cut = _stratified(whole.labels[train], 0.15)
            except ValueError as error:
                raise UserError(f"{root}: too few images to cut off a {part} split ({error})") from error
            train, parts[part] = train[kept], Subset(whole, train[cut])
    return Splits(train=Subset(whole, train), **parts)


_PARTS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}


def tfds_split(name: str, split: str, directory: Path) -> Tfds:
    """One split of a data set that tensorflow-datasets prepared as array_record; read without TensorFlow."""
    import tensorflow_datasets as tfds  # costs half a second, and only this needs it

    try:
        builder = tfds.builder(name, data_dir=directory)
    except tfds.core.registered.DatasetNotFoundError as error:
        near = get_close_matches(name, ["digits", *tfds.list_builders()], 3) or ["digits", *TFDS]
        raise UserError(
            f"unknown data set {name!r}: did you mean {', '.join(near)}, or the path of a folder?"
        ) from error
    _check_prepared(builder, name, directory)
    features = builder.info.features
    if "image" not in features or "label" not in features or features["image"].shape[-1] not in (1, 3):
        raise UserError(
            f"{name} has no image and label with 1 or 3 channels to classify; it has {features}".replace("\n", " ")
        )
    try:
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except ValueError as error:
        raise UserError(f"{name}, split {split!r}: {' '.join(str(error).split())}") from error
    if not len(records):
        raise UserError(f"{name}, split {split!r}: no examples in it")
    return Tfds(records, tuple(features["label"].names), features["image"].shape[-1], f"{name} {split}")


def _check_prepared(builder: Any, name: str, directory: Path) -> None:
    cure = f"run `python -m cnnjax.data.prepare {name} --data-dir {directory}` (it needs `pip install cnnjax[prepare]`)"
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {directory}: {cure}, or give another --data-dir")
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"{name} in {directory} is stored as {builder.info.file_format.value}, not array_record: {cure}"
        )
    files = [Path(path) for split in builder.info.splits.values() for path in split.filepaths]
    missing = [path.name for path in files if not path.is_file() or not path.stat().st_size]
    if missing:
        raise UserError(
            f"{name} in {directory} is half prepared, missing {missing[:3]}: delete {builder.data_path}, then {cure}"
        )
