"""Entries of a zip archive as views of the mapped file: what is stored uncompressed is not copied."""

import io
import itertools
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cnnjax.types import UserError

MAX_DIRECTORY = 4 << 20  # bytes; an entry takes about 70
_LOCAL = struct.Struct("<4s5H3I2H")  # the header before an entry's data
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800  # flags; with a descriptor, CRC and sizes come behind the data
_ELSEWHERE = 0xFFFFFFFF  # a size that only the zip64 field holds


class _Frugal(io.FileIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > MAX_DIRECTORY:  # zipfile reads the directory at once, and makes twenty times as much of it
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def directory(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive, as its directory states them.

    Raises:
      UserError: it cannot be read, or is larger than that of any file of weights.
    """
    try:
        with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    # What zipfile raises for a damaged directory.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, OverflowError) as error:
        raise UserError(f"{path} is a damaged zip archive ({error}), or cut off: fetch it again") from error


class MappedZip:
    """A zip archive.

    Args:
      mapped: uint8 [n], all of the file.

    Raises:
      UserError: its directory and its entries contradict each other, or an entry grows more than tenfold.
    """

    def __init__(self, path: Path, mapped: np.ndarray) -> None:
        self.path, self.mapped = path, mapped
        infos = directory(path)
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) < len(infos):
            raise UserError(f"{path} is a zip archive that holds one name twice: damaged, fetch it again")
        self.starts = {info.filename: self._start(info) for info in infos}
        self._check_overlap()
        self.verified: set[str] = set()

    def unchecked(self, name: str) -> np.ndarray:
        """As ``read``; of a stored entry the CRC-32 is not looked at."""
        info, start = self.infos[name], self.starts[name]
        stored = info.compress_type == zipfile.ZIP_STORED
        return self.mapped[start : start + info.compress_size] if stored else self.read(name)

    def read(self, name: str) -> np.ndarray:
        """uint8 [size], read-only, of the right CRC-32, which is computed once where the entry is stored."""
        info, start = self.infos[name], self.starts[name]
        data = self.mapped[start : start + info.compress_size]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = self._inflated(info, data)
        elif name in self.verified:
            return data
        if len(data) != info.file_size or zlib.crc32(data.data) != info.CRC:
            raise self._damaged(info, "its size or checksum differs")
        self.verified.add(name)
        return data

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where its data begins, after comparing its own header with the directory."""
        at = info.header_offset
        header = bytes(self.mapped[at : at + _LOCAL.size]) if at >= 0 else b""  # a wrong directory's place makes it < 0
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            raise self._damaged(info, "it has no header")
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(header)
        name = bytes(self.mapped[at + _LOCAL.size : at + _LOCAL.size + name_length])
        unknown = 0 if flags & _DESCRIPTOR else None
        agrees = (
            name == info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
            and method == info.compress_type
            and crc in (info.CRC, unknown)
            and packed in (info.compress_size, unknown, _ELSEWHERE)
            and size in (info.file_size, unknown, _ELSEWHERE)
        )
        if not agrees:
            raise self._damaged(info, "its header differs from the directory")
        self._check_size(info)
        start = at + _LOCAL.size + name_length + extra_length
        if start + info.compress_size > len(self.mapped):
            raise self._damaged(info, "it goes on behind the end of the file")
        return start

    def _check_size(self, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._damaged(info, "it is encrypted, or compressed otherwise than by deflate")
        if info.file_size > 10 * info.compress_size + (1 << 20):
            raise self._damaged(info, f"{info.compress_size} bytes would grow to {info.file_size}")

    def _check_overlap(self) -> None:
        spans = sorted(
            (info.header_offset, self.starts[name] + info.compress_size) for name, info in self.infos.items()
        )
        if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
            raise UserError(f"{self.path} is a zip archive whose entries overlap: damaged, fetch it again")

    def _inflated(self, info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data.data, info.file_size + 1)
        except zlib.error as error:
            raise self._damaged(info, str(error)) from error
        return np.frombuffer(inflated, np.uint8)

    def _damaged(self, info: zipfile.ZipInfo, why: str) -> UserError:
        return UserError(f"{self.path}: entry {info.filename[:80]!r} is damaged ({why}): fetch it again")
