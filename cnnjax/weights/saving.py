"""Weights into a file that ``weights.load``, and everything that reads safetensors, understands."""

import contextlib
import os
import zlib
from pathlib import Path
from typing import Literal

import flax.linen as linen
import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from cnnjax.types import PyTree, UserError
from cnnjax.weights import rules

_NO_DIGEST = "not yet "  # as long as a CRC-32 in hexadecimal


def save(
    path: str | Path, variables: PyTree, model: linen.Module, layout: Literal["safetensors"] = "safetensors"
) -> Path:
    """Writes the variables of ``model``, so that ``load(path, model)`` gives them back bit for bit.

    Keys are paths, ``params/stem/conv/kernel``; the header has the CRC-32 of all that follows it, which ``load``
    verifies. The file has its name only once it is whole.

    Args:
      path: of the file; an old one is replaced.
      variables: ``{"params": …, "batch_stats": …}``, no more and no less than the model has.
      model: whose variables they are.
      layout: "safetensors".

    Returns:
      The path.

    Raises:
      UserError: another layout, variables that are not this model's, or a path that cannot be written.
    """
    path = Path(path)
    if layout != "safetensors":
        raise UserError(f'weights are saved in the layout "safetensors", got {layout!r}')
    flat = {"/".join(where): np.asarray(x) for where, x in traverse_util.flatten_dict(variables).items()}
    expected = {"/".join(where) for where in rules.structure(model, model.image_shape).slots}
    if flat.keys() != expected:
        lacks, more = sorted(expected - flat.keys())[: rules.SHOWN], sorted(flat.keys() - expected)[: rules.SHOWN]
        raise UserError(f"these are not the variables of this {type(model).__name__}: without {lacks}, but with {more}")
    metadata = {"format": "cnnjax", "model": type(model).__name__, "crc32": _NO_DIGEST}
    content = safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in flat.items()}, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    digest = f"{zlib.crc32(memoryview(content)[start:]):08x}"
    _write(path, [content[:start].replace(_NO_DIGEST.encode(), digest.encode(), 1), memoryview(content)[start:]])
    return path


def _write(path: Path, parts: list) -> None:
    if jax.process_index():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}: choose another path, or make room") from error
