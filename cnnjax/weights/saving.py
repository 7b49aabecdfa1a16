"""Weights into a file that ``weights.load``, and everything that reads safetensors, understands."""

import contextlib
import json
import os
import threading
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
    flat = {"/".join(where): np.asarray(x) for where, x in traverse_util.flatten_dict(dict(variables)).items()}
    _check(flat, model)
    fields = json.dumps(rules.fields(model))
    metadata = {"format": "cnnjax", "model": type(model).__name__, "fields": fields, "crc32": _NO_DIGEST}
    content = safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in flat.items()}, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    digest = f"{zlib.crc32(memoryview(content)[start:]):08x}"
    _write(path, [content[:start].replace(_NO_DIGEST.encode(), digest.encode(), 1), memoryview(content)[start:]])
    return path


def _check(flat: dict[str, np.ndarray], model: linen.Module) -> None:
    """UserError unless these are all arrays of the model, of its shapes and types, and finite."""
    slots = {"/".join(where): slot for where, slot in rules.structure(model, model.image_shape).slots.items()}
    if flat.keys() != slots.keys():
        lacks, more = (sorted(a.keys() - b.keys())[: rules.SHOWN] for a, b in ((slots, flat), (flat, slots)))
        raise UserError(f"these are not the variables of this {type(model).__name__}: without {lacks}, but with {more}")
    for key, x in flat.items():
        slot = slots[key]
        # What a kernel takes may follow from the images' size and channels.
        free = (
            x.ndim > 1
            and len(slot.shape) == x.ndim
            and x.shape[:-2] + x.shape[-1:] == slot.shape[:-2] + slot.shape[-1:]
        )
        if (x.shape != slot.shape and not free) or x.dtype != slot.dtype:
            have = f"{x.dtype} {list(x.shape)}"
            raise UserError(f"{key} of this {type(model).__name__} is {slot.dtype} {list(slot.shape)}, got {have}")
        if not np.isfinite(x).all():
            raise UserError(f"{key} holds NaN or infinity: such weights are not worth keeping")


def _write(path: Path, parts: list) -> None:
    if jax.process_index():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
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
