"""Keras 3's ``.keras``: a zip archive of the model's configuration and an HDF5 file of its weights."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cnnjax.types import UserError
from cnnjax.weights.formats import hdf5, keras_names
from cnnjax.weights.formats.content import Content, Format, Signature, mapped
from cnnjax.weights.formats.keras_names import Layer
from cnnjax.weights.formats.mapped_zip import MappedZip

WEIGHTS, SHARDS, CONFIG = "model.weights.h5", "model.weights.json", "config.json"
_CONFIG_LIMIT = 64 << 20  # bytes


def recognizes(signature: Signature) -> bool:
    """True for a zip archive that holds the weights of a Keras model, whole or split."""
    return not signature.entries.isdisjoint((WEIGHTS, SHARDS))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the weights of a saved model; its configuration gives the names of layers; the CRC-32 of both is verified.

    Raises:
      UserError: it is damaged, or its weights are split over several files.
    """
    archive = MappedZip(path, mapped(path))
    if SHARDS in archive.infos:
        raise UserError(f"{path} splits its weights over several files: save the model without max_shard_size")
    with ThreadPoolExecutor(1) as pool:
        # The checksum takes as long as all other work, so it is computed meanwhile. A wrong checksum replaces any other
        # error, because the damage is its cause.
        checked = pool.submit(archive.read, WEIGHTS)
        try:
            with hdf5.content(path, archive.unchecked(WEIGHTS), ".keras file", _layers(archive)) as content:
                yield content
        finally:
            checked.result()


def _layers(archive: MappedZip) -> dict[str, Layer]:
    """Layers by their group in the HDF5 file; none for a model that is not made of a list of layers."""
    info = archive.infos.get(CONFIG)
    if info is None or info.file_size > _CONFIG_LIMIT:
        raise UserError(
            f"{archive.path} is a .keras file without {CONFIG}, or with one of more than {_CONFIG_LIMIT >> 20} MiB: "
            "save the model anew"
        )
    try:
        model = json.loads(archive.read(CONFIG).tobytes())
        return dict(keras_names.layers_of(model)) if "layers" in model["config"] else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{archive.path}: its {CONFIG} describes no model ({error}): save the model anew") from error


FORMAT = Format("Keras .keras", recognizes, opened)
