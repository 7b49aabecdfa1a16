"""Small data sets, prepared by tensorflow-datasets without TensorFlow."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def prepare(
    root: Path, name: str, features: Mapping[str, Any], splits: Mapping[str, Sequence[Any]], config: str | None = None
) -> None:
    """Prepares a data set ``name`` below ``root``; ``splits`` are lists of examples, whose files are read once."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    Small.name = name
    Small(data_dir=root, file_format="array_record").download_and_prepare(file_format="array_record")


def png(values: Any, orientation: int = 1) -> io.BytesIO:
    """PNG file of pixels [h, w] or [h, w, 3], with an EXIF orientation."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.asarray(values, np.uint8)).save(file, "PNG", exif=exif)
    file.seek(0)
    return file
