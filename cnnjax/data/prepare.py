"""Downloads and prepares a tensorflow-datasets data set: ``python -m cnnjax.data.prepare fashion_mnist``.

Only this module needs TensorFlow (``pip install -e '.[prepare]'``): reading a prepared data set does not.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cnnjax.data.formats.tfds import tfds_directory
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """The data set to prepare, and its folder."""

    name: Annotated[str, tyro.conf.Positional]
    """A tfds name, such as fashion_mnist."""
    data_dir: Path = field(default_factory=lambda: tfds_directory(None))
    """Folder of the data sets."""


def prepare(name: str, data_dir: Path) -> None:
    """Prepares ``name`` under ``data_dir`` as array_record, which can be read at random and without TensorFlow.

    Raises:
      UserError: TensorFlow is not installed, the name is unknown, or tfds failed (download, disk, other format).
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("preparing a data set needs TensorFlow: pip install -e '.[prepare]'")
    import tensorflow_datasets as tfds

    try:
        tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
    # Downloads, extraction and the data sets' own code raise any exception.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise UserError(f"preparing {name} in {data_dir} failed ({reason})") from error


if __name__ == "__main__":
    config = tyro.cli(Config)
    try:
        prepare(config.name, config.data_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
