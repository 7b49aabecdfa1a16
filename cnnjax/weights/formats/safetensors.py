"""``.safetensors``: a header with the name, type, shape and place of each array, then the values."""

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
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor, from_keys, mapped

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


def recognizes(signature: Signature) -> bool:
    """True for a file that begins with the length of a header, below 4 GiB, and the header, which is JSON."""
    return signature.head[4:9] == b"\0\0\0\0{"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the weights in a file of any publisher, or of ``weights.save``, whose checksum of the values is verified.

    Raises:
      UserError: the file is damaged, or has values of a type that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            # The library has verified that the arrays follow one another without gaps and fill the file.
            headers = [(key, file.get_slice(key)) for key in file.offset_keys()]
            described = [(key, tuple(it.get_shape()), it.get_dtype()) for key, it in headers]
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}), or cut off: fetch it again") from error
    memory = mapped(path)
    start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
    ours = metadata.get("format") == "cnnjax"
    if ours and f"{zlib.crc32(memory[start:].data):08x}" != metadata.get("crc32"):
        raise UserError(
            f"{path} is damaged, its checksum is not the one that it was written with: fetch or save it again"
        )
    content = from_keys("safetensors file", _tensors(path, memory, start, described))
    yield content._replace(names="cnnjax", about=metadata) if ours else content


def _tensors(
    path: Path, memory: np.ndarray, start: int, described: list[tuple[str, tuple[int, ...], str]]
) -> dict[str, Tensor]:
    if unknown := sorted({code for _, _, code in described} - _DTYPES.keys()):
        raise UserError(f"{path} has values of the types {unknown}, expected {sorted(_DTYPES)}: convert them")
    tensors, at = {}, start
    for key, shape, code in described:
        dtype = np.dtype(_DTYPES[code])
        end = at + math.prod(shape) * dtype.itemsize
        tensors[key] = Tensor(shape, dtype, functools.partial(_view, memory[at:end], shape, dtype))
        at = end
    return tensors


def _view(memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return memory.view(dtype).reshape(shape)


FORMAT = Format(".safetensors", recognizes, opened)
