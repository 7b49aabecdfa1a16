"""Data sets by name: ``digits`` (embedded), any tensorflow-datasets name, or a folder of images."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnjax.data import host
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
      data_dir: where tfds data sets lie; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      splits: tfds split syntax for any of train, valid, test, in place of the usual ones.
      channels: what the images of a folder are converted to, 1 or 3.
      fractions: of a folder: see ``folder``.

    Raises:
      UserError: unknown name, data set not (or half) prepared, a bad split, a bad folder.
    """
    chosen = {part: text for part, text in (splits or {}).items() if text}
    if chosen and (name == "digits" or is_folder(name)):
        raise UserError(f"{name} has fixed splits; {sorted(chosen)} can be chosen for tfds data sets only")
    if name == "digits":
        return digits()
    if is_folder(name):
        return folder(Path(name).expanduser(), channels, fractions)
    directory = tfds_directory(data_dir)
    texts = {**TFDS.get(_base(name), OTHER_TFDS), **chosen}
    return Splits(**{part: tfds_split(name, text, directory) for part, text in texts.items()})


def tfds_directory(data_dir: Path | None) -> Path:
    """Where tfds data sets lie: ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    return data_dir or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def is_folder(name: str) -> bool:
    """Whether a data set's name is a path: of a folder that exists, or with a separator but no tfds name before it."""
    if not name or name == "digits" or _base(name) in TFDS:
        return False
    return Path(name).expanduser().is_dir() or (os.sep in name and _base(name) not in _tfds_names())


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


def folder(root: Path, channels: int = 3, fractions: tuple[float, float] = (0.15, 0.15)) -> Splits:
    """A folder with one sub-folder per class, or with ``train``, ``test`` (and ``valid`` or ``val``) of such.

    What is not given is cut off stratified, reproducibly: ``fractions[0]`` for test, then ``fractions[1]`` of the rest
    for validation.

    Raises:
      UserError: see ``Folder.open``; a test or validation folder without a train folder; too few images to cut.
    """
    named = {part: next((root / n for n in names if _has_folders(root / n)), None) for part, names in _PARTS.items()}
    if named["train"] is None and (others := [path.name for path in named.values() if path]):
        raise UserError(f"{root}: it has {' and '.join(others)} but no folder train with a sub-folder for each class")
    whole = Folder.open(named["train"] or root, channels)
    given = {
        part: Folder.open(path, channels, whole.classes) for part, path in named.items() if path and part != "train"
    }
    train = np.arange(len(whole))
    parts: dict[str, Source] = dict(given)
    for part, fraction in zip(("test", "valid"), fractions, strict=True):
        if part not in given:
            kept, cut = _cut(whole, train, part, fraction)
            train, parts[part] = train[kept], Subset(whole, train[cut])
    return Splits(train=Subset(whole, train), **parts)


_PARTS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}


def _has_folders(path: Path) -> bool:
    # A folder called train may also be a class, of vehicles for example: then images lie in it.
    return path.is_dir() and any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())


def _cut(whole: Folder, indices: np.ndarray, part: str, fraction: float) -> list[np.ndarray]:
    labels = whole.labels[indices]
    try:
        return _stratified(labels, fraction)
    except ValueError as error:
        counts = np.bincount(labels, minlength=len(whole.classes))
        fewest = int(counts.argmin())
        raise UserError(
            f"too few images to cut a {part} split off the {len(indices)} in {len(counts)} classes, the fewest being "
            f"{counts[fewest]} of {whole.classes[fewest]!r}: add images, or make folders train, valid and test"
        ) from error


def tfds_split(name: str, split: str, directory: Path) -> Tfds:
    """One split of a data set that tensorflow-datasets prepared as array_record; read without TensorFlow."""
    import tensorflow_datasets as tfds  # costs half a second, and only this needs it

    builder = _builder(name, directory)
    features = builder.info.features
    kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = kinds.get("image"), kinds.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and isinstance(label, tfds.features.ClassLabel)
        and image.np_dtype == np.uint8
        and image.shape[-1] in host.MODES
    ):
        raise UserError(
            f"{name} has no uint8 image with 1 or 3 channels and class label: it has {' '.join(repr(features).split())}"
        )
    try:
        if not builder.info.splits[split].num_examples:
            raise UserError(f"{name}, split {split!r}: no examples in it")
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(f"{name}, split {split!r}: {' '.join(str(error).split())}") from error
    return Tfds(records, tuple(label.names), image.shape[-1], f"{name} {split}")


def _builder(name: str, directory: Path) -> Any:
    """Opens what lies on the disk, complete; the data set's own code, which may need TensorFlow, is not run."""
    import tensorflow_datasets as tfds

    folder, prepare = directory / _base(name), _prepare_command(name, directory)
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=directory)
    except tfds.core.registered.DatasetNotFoundError as error:
        _check_known(name)
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        first = f"{folder} holds only {found}; if that is incomplete delete it, then " if found else ""
        cure = f"{first}run {prepare}, or give another --data-dir"
        raise UserError(f"{name} is not prepared in {directory}: {cure}") from error
    # For damaged metadata tfds raises errors of its own, of protobuf and of json.
    except Exception as error:
        _check_known(name)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} in {directory} is damaged ({reason}): delete {folder}, then run {prepare}") from error
    if builder.name != _base(name):
        _check_known(name)  # tfds takes MNIST for mnist, this catalog does not
    _check_files(builder, name, directory)
    return builder


def _check_files(builder: Any, name: str, directory: Path) -> None:
    again = f"delete {builder.data_path}, then run {_prepare_command(name, directory)}"
    form = builder.info.file_format.value
    if form != "array_record":
        raise UserError(f"{name} in {directory} is stored as {form}, not array_record: {again}")
    files = [Path(path) for split in builder.info.splits.values() for path in split.filepaths]
    missing = [path.name for path in files if not path.is_file() or not path.stat().st_size]
    if missing:
        raise UserError(f"{name} in {directory} is half prepared, missing or empty are {missing[:3]}: {again}")


def _prepare_command(name: str, directory: Path) -> str:
    return f"`python -m cnnjax.data.prepare {name} --data-dir {directory}` (it needs `pip install -e '.[prepare]'`)"


def _base(name: str) -> str:
    return name.split(":")[0].split("/")[0]


def _tfds_names() -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def _check_known(name: str) -> None:
    names = ["digits", *_tfds_names()]
    if _base(name) not in names or not re.fullmatch(r"[\w/:.]+", name):
        near = get_close_matches(name.lower(), names, 3) or ["digits", *TFDS]
        raise UserError(f"unknown data set {name!r}: did you mean {', '.join(near)}, or the path of a folder?")
