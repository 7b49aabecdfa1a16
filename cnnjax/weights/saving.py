"""Saving of weights as safetensors, which ``weights.load`` and many other programs read."""

import json
import zlib
from pathlib import Path
from typing import Any, Literal

import flax.linen as linen
import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from cnnjax import atomic
from cnnjax.types import PyTree, UserError
from cnnjax.weights import own, rules

_SHOWN = 20  # most names of each side in an error
_LENGTH = 8  # bytes at the beginning, which hold the length of the header


def save(
    path: str | Path, variables: PyTree, model: linen.Module, layout: Literal["safetensors"] = "safetensors"
) -> Path:
    """Writes the variables of ``model``, so that ``load(path, model)`` gives them back bit for bit.

    Keys are paths, ``params/stem/conv/kernel``; the header has the CRC-32 of the values, which ``load`` verifies. The
    same values give the same bytes. The file is written whole or not at all; of several processes the first writes it.

    Args:
      path: of the file, which is replaced if it exists; its folder is made.
      variables: ``{"params": …, "batch_stats": …}``, exactly those of the model.
      model: whose variables they are.
      layout: "safetensors", the only one.

    Returns:
      The path.

    Raises:
      UserError: another layout, variables of another model, values that are not finite, or a path that cannot be
        written.
    """
    path = Path(path)
    if layout != "safetensors":
        raise UserError(f'weights are saved in the layout "safetensors", got {layout!r}')
    flat = {"/".join(where): np.asarray(x) for where, x in traverse_util.flatten_dict(dict(variables)).items()}
    _check(flat, model)
    content = memoryview(safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in flat.items()}))
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header, values = json.loads(bytes(content[_LENGTH:end])), content[end:]
    _write(path, [_header({"__metadata__": _about(model, values), **header}), values])
    return path


def _about(model: linen.Module, values: memoryview) -> dict[str, str]:
    """The texts in the header that name the format and the model, and the checksum of the values."""
    fields = json.dumps(own.fields(model))
    return {"format": "cnnjax", "model": type(model).__name__, "fields": fields, "crc32": f"{zlib.crc32(values):08x}"}


def _header(header: dict[str, Any]) -> bytes:
    """The header of a safetensors file; the library itself writes the texts in an order that changes by chance."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of 8 bytes
    return len(text).to_bytes(_LENGTH, "little") + text


def _check(flat: dict[str, np.ndarray], model: linen.Module) -> None:
    """UserError unless these are exactly the arrays of the model, of its shapes and types, and finite."""
    slots = {"/".join(where): slot for where, slot in rules.structure(model, model.image_shape).slots.items()}
    if flat.keys() != slots.keys():
        lacks, more = (sorted(a.keys() - b.keys())[:_SHOWN] for a, b in ((slots, flat), (flat, slots)))
        raise UserError(f"these are not the variables of this {type(model).__name__}: without {lacks}, but with {more}")
    for key, x in flat.items():
        slot = slots[key]
        # The number of inputs of a kernel may depend on the size and the channels of the images.
        free = (
            x.ndim > 1
            and len(slot.shape) == x.ndim
            and x.shape[:-2] + x.shape[-1:] == slot.shape[:-2] + slot.shape[-1:]
        )
        if (x.shape != slot.shape and not free) or x.dtype != slot.dtype:
            have = f"{x.dtype} {list(x.shape)}"
            raise UserError(f"{key} of this {type(model).__name__} is {slot.dtype} {list(slot.shape)}, got {have}")
        if not np.isfinite(x).all():
            raise UserError(f"{key} holds NaN or infinity, which is not saved: the training diverged")


def _write(path: Path, parts: list[Any]) -> None:
    if jax.process_index():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path) as file:
            file.writelines(parts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: choose another path, or make room") from error
