"""Data sets that tensorflow-datasets prepared as array_record, read without TensorFlow."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data.formats.images import MODES, decode
from cnnjax.types import UserError


class UnknownNameError(UserError):
    """No data set of tensorflow-datasets has this name."""


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
        record = self.record(index)
        return {"image": self._image(record, index), "label": np.int32(record["label"])}

    def image(self, index: int) -> np.ndarray:
        """Image of an example, uint8 [h, w, channels]."""
        return self._image(self.record(index), index)

    def record(self, index: int) -> Any:
        """Features of an example by name, images still encoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, no example {index}")
        return self._fetch(lambda: self.records[index])

    def _image(self, record: Any, index: int) -> np.ndarray:
        return decode(record["image"], self.channels, f"{self.name}, example {index}")

    def parts(self, size: int = 256) -> Iterator[tuple[int, Any]]:
        """Index and record of every example, images still encoded; read ``size`` at a time."""
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            read = partial(self.records.__getitems__, indices)
            yield from zip(indices, self._fetch(read), strict=True)

    def fetched(self) -> "Tfds":
        """A copy with all records in memory, still encoded: read in one go, five times faster than singly."""
        return replace(self, records=self._fetch(lambda: [*self.records.__getitems__(range(len(self.records)))]))

    def _fetch(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        # array_record reports a damaged file as one of these.
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name} is damaged ({reason}): delete its folder and prepare it again") from error


def tfds_directory(data_dir: Path | None) -> Path:
    """Folder of the tfds data sets: ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    return data_dir or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def base_name(name: str) -> str:
    """Name of a data set without configuration and version: ``emnist/balanced`` → ``emnist``."""
    return name.split(":")[0].split("/")[0]


def known_names() -> list[str]:
    """Names of all data sets that tensorflow-datasets can prepare."""
    import tensorflow_datasets as tfds  # costs half a second

    return tfds.list_builders(with_community_datasets=False)


def split_sizes(name: str, directory: Path) -> dict[str, int]:
    """Number of examples of each split that the publisher of a data set made; errors as in `tfds_split`."""
    return {split: info.num_examples for split, info in _builder(name, directory).info.splits.items()}


def tfds_split(name: str, split: str, directory: Path) -> Tfds:
    """One split (``train[:90%]``) of a data set (``emnist/balanced``, ``mnist:3.0.1``) in the tfds ``directory``.

    Raises:
      UnknownNameError: tensorflow-datasets knows no such name.
      UserError: not (or half) prepared, damaged, a bad split, or no labelled images.
    """
    import tensorflow_datasets as tfds

    kinds = features(name, directory)
    image, label = kinds.get("image"), kinds.get("label")
    if image is None or not (is_image(image) and isinstance(label, tfds.features.ClassLabel)):
        raise UserError(
            f"{name} has no uint8 image with 1 or 3 channels and class label: it has {' '.join(repr(kinds).split())}"
        )
    return opened(name, split, directory, tuple(label.names), image.shape[-1])


def features(name: str, directory: Path) -> dict[str, Any]:
    """Features of a data set by name; errors as in `tfds_split`."""
    import tensorflow_datasets as tfds

    found = _builder(name, directory).info.features
    return dict(found.items()) if isinstance(found, tfds.features.FeaturesDict) else {"": found}


def is_image(feature: Any) -> bool:
    """True for a feature that is an image as they are taken here."""
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8 and feature.shape[-1] in MODES


def opened(
    name: str,
    split: str,
    directory: Path,
    classes: tuple[str, ...],
    channels: int,
    encoded: Sequence[str] = ("image",),
) -> Tfds:
    """One split, whose features are known; those that are ``encoded`` images stay so; errors as in `tfds_split`."""
    import tensorflow_datasets as tfds

    builder = _builder(name, directory)
    try:
        if builder.info.splits[split].num_examples <= 0:  # train[5:2] has −3
            raise UserError(f"{name}, split {split!r}: no examples in it")
        records = builder.as_data_source(split=split, decoders={each: tfds.decode.SkipDecoding() for each in encoded})
    except (ValueError, KeyError) as error:
        raise UserError(f"{name}, split {split!r}: {' '.join(str(error).split())}") from error
    return Tfds(records, classes, channels, f"{name} {split}")


def _builder(name: str, directory: Path) -> Any:
    """Opens a data set on the disk; its own code, which may need TensorFlow, is not run."""
    import tensorflow_datasets as tfds

    folder, prepare = directory / base_name(name), _prepare_command(name, directory)
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
    if builder.name != base_name(name):
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


def _check_known(name: str) -> None:
    if base_name(name) not in known_names() or not re.fullmatch(r"[\w/:.]+", name):
        raise UnknownNameError(f"unknown data set {name!r}")
