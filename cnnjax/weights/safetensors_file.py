"""``.safetensors``: a header of names, types, shapes and places, then the values."""

import contextlib
import functools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from cnnjax.types import UserError
from cnnjax.weights.files import Content, Tensor, by_look, mapped

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The weights in a file of timm, torchvision or ``weights.save``, which notes a checksum of the values.

    Raises:
      UserError: it is damaged, or of a type that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            # The library has made sure that they follow on one another and fill the file.
            headers = [(key, file.get_slice(key)) for key in file.offset_keys()]
            described = [(key, tuple(it.get_shape()), it.get_dtype()) for key, it in headers]
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}), or cut off: fetch it again") from error
    memory = mapped(path)
    start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
    ours = metadata.get("format") == "cnnjax"
    if ours and f"{zlib.crc32(memory[start:].data):08x}" != metadata.get("crc32"):
        raise UserError(
            f"{path} is damaged, its checksum differs from that it was written with: fetch or save it again"
        )
    content = by_look("safetensors file", _tensors(path, memory, start, described))
    yield content._replace(names="cnnjax", about=metadata) if ours else content


def _tensors(
    path: Path, memory: np.ndarray, start: int, described: list[tuple[str, tuple[int, ...], str]]
) -> dict[str, Tensor]:
    if unknown := sorted({code for _, _, code in described} - _DTYPES.keys()):
        raise UserError(f"{path} has values of {unknown}, expected {sorted(_DTYPES)}: convert them")
    tensors, at = {}, start
    for key, shape, code in described:
        dtype = np.dtype(_DTYPES[code])
        end = at + math.prod(shape) * dtype.itemsize
        tensors[key] = Tensor(shape, dtype, functools.partial(_view, memory[at:end], shape, dtype))
        at = end
    return tensors


def _view(memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return memory.view(dtype).reshape(shape)
