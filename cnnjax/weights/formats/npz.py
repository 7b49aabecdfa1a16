"""NumPy's ``.npz``, written by ``savez`` or ``savez_compressed``: a zip archive of arrays."""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cnnjax.types import UserError
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor, from_keys, mapped
from cnnjax.weights.formats.mapped_zip import MappedZip

_SUFFIX = ".npy"
_HEADER = 1000  # bytes that a header may have at most; NumPy writes about 120
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def recognizes(signature: Signature) -> bool:
    """True for a zip archive that has only arrays."""
    return bool(signature.entries) and all(name.endswith(_SUFFIX) for name in signature.entries)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the arrays, by the names given to ``savez``; the CRC-32 of each is verified when it is read.

    Raises:
      UserError: the file is damaged, or holds pickled objects, which are not read.
    """
    archive = MappedZip(path, mapped(path))
    yield from_keys("npz file", {name.removesuffix(_SUFFIX): _tensor(archive, name) for name in archive.infos})


def _tensor(archive: MappedZip, name: str) -> Tensor:
    header = io.BytesIO(_beginning(archive, name))
    try:
        read_header = _READERS[np.lib.format.read_magic(header)]
        shape, fortran, dtype = read_header(header, max_header_size=_HEADER)
        size = math.prod(shape) * dtype.itemsize
    # NumPy parses a header as Python, so a damaged one raises any kind of exception.
    except Exception as error:
        raise _damaged(archive, name, " ".join(str(error).split())[:200]) from error
    start, stored = header.tell(), archive.infos[name].file_size
    if dtype.hasobject:
        raise UserError(
            f"{archive.path}: {name[:80]!r} holds pickled objects, which are not read: save arrays of numbers"
        )
    if min(shape, default=0) < 0 or start + size != stored:
        raise _damaged(archive, name, f"shape {shape} of {dtype} takes {size} bytes, found {stored - start}")

    def read() -> np.ndarray:
        return archive.read(name)[start:].view(dtype).reshape(shape, order="F" if fortran else "C")

    return Tensor(shape, dtype, read)


def _beginning(archive: MappedZip, name: str) -> bytes:
    """The first bytes of an entry, enough for the header; its checksum is not verified."""
    info, start = archive.infos[name], archive.starts[name]
    data = archive.mapped[start : start + min(info.compress_size, 2 * _HEADER)].tobytes()
    if info.compress_type != zipfile.ZIP_DEFLATED:
        return data
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 2 * _HEADER)
    except zlib.error as error:
        raise _damaged(archive, name, error) from error


def _damaged(archive: MappedZip, name: str, why: object) -> UserError:
    return UserError(f"{archive.path}: array {name[:80]!r} is damaged ({why}): fetch it again")


FORMAT = Format(".npz", recognizes, opened)
