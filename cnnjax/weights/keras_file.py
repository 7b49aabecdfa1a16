"""Keras 3's ``.keras``: a zip archive of the model's configuration and an HDF5 file of its weights."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cnnjax.types import UserError
from cnnjax.weights import hdf5, keras_names
from cnnjax.weights.files import Content, mapped
from cnnjax.weights.keras_names import Layer
from cnnjax.weights.mapped_zip import MappedZip

WEIGHTS, SHARDS, CONFIG = "model.weights.h5", "model.weights.json", "config.json"
_CONFIG_LIMIT = 64 << 20  # bytes


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The weights of a saved model; its configuration only tells the names of layers. The CRC-32 of both is verified.

    Raises:
      UserError: it is damaged, or its weights are split over several files.
    """
    archive = MappedZip(path, mapped(path))
    if SHARDS in archive.infos:
        raise UserError(f"{path} splits its weights over several files: save the model without max_shard_size")
    with ThreadPoolExecutor(1) as pool:
        # The checksum takes as long as all the rest: compute it meanwhile. What was found wrong with damaged weights
        # does not matter then, that they are damaged does.
        checked = pool.submit(archive.read, WEIGHTS)
        try:
            with hdf5.content(path, archive.unchecked(WEIGHTS), ".keras file", _layers(archive)) as content:
                yield content
        finally:
            checked.result()


def _layers(archive: MappedZip) -> dict[str, Layer]:
    """Layers by group of the HDF5 file; none for a model that is no list of layers."""
    info = archive.infos.get(CONFIG)
    if info is None or info.file_size > _CONFIG_LIMIT:
        raise UserError(
            f"{archive.path} is a .keras file without {CONFIG}, or with an enormous one: save the model anew"
        )
    try:
        model = json.loads(archive.read(CONFIG).tobytes())
        return dict(keras_names.layers_of(model)) if "layers" in model["config"] else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{archive.path}: its {CONFIG} describes no model ({error}): save the model anew") from error
