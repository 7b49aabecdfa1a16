"""Entries of a zip archive as views of the mapped file: uncompressed entries are not copied."""

import io
import itertools
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cnnjax.types import UserError

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY = 4 << 20  # bytes; an entry takes about 70
_LOCAL = struct.Struct("<4s5H3I2H")  # the header before an entry's data
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800  # flags; with a descriptor, CRC and sizes follow the data
_ZIP64 = 0xFFFFFFFF  # stands for a size that the zip64 field holds


class _Frugal(io.FileIO):
    """File that refuses to be read in large pieces."""

    def read(self, size: int | None = -1, /) -> bytes:
        # zipfile reads the directory in one piece, and makes objects from it that take twenty times as much memory.
        if size and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def directory(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip archive: a record for each entry.

    Raises:
      UserError: it cannot be read, or is larger than any file of weights needs.
    """
    try:
        with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    # The exceptions that zipfile raises for a damaged directory.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, OverflowError) as error:
        raise UserError(f"{path} is a damaged zip archive ({error}), or cut off: fetch it again") from error


class MappedZip:
    """A zip archive in a mapped file.

    Args:
      path: of the file.
      mapped: all of its bytes, uint8 [n].

    Raises:
      UserError: the directory and the entries contradict each other, or an entry grows more than tenfold.
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
        """The bytes of an entry, uint8 [size], read-only; the CRC-32 of an uncompressed one is not verified."""
        info, start = self.infos[name], self.starts[name]
        stored = info.compress_type == zipfile.ZIP_STORED
        return self.mapped[start : start + info.compress_size] if stored else self.read(name)

    def read(self, name: str) -> np.ndarray:
        """The bytes of an entry, uint8 [size], read-only.

        Raises:
          UserError: the CRC-32 is wrong. For an uncompressed entry it is computed once.
        """
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
        """The first byte of an entry's data; UserError if the entry's own header contradicts the directory."""
        at = info.header_offset
        header = bytes(self.mapped[at : at + _LOCAL.size]) if at >= 0 else b""  # < 0 where the directory is misplaced
        if len(header) < _LOCAL.size or not header.startswith(MAGIC):
            raise self._damaged(info, "it has no header")
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(header)
        name = bytes(self.mapped[at + _LOCAL.size : at + _LOCAL.size + name_length])
        unknown = 0 if flags & _DESCRIPTOR else None
        agrees = (
            name == info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
            and method == info.compress_type
            and crc in (info.CRC, unknown)
            and packed in (info.compress_size, unknown, _ZIP64)
            and size in (info.file_size, unknown, _ZIP64)
        )
        if not agrees:
            raise self._damaged(info, "its header differs from the directory")
        self._check_size(info)
        start = at + _LOCAL.size + name_length + extra_length
        if start + info.compress_size > len(self.mapped):
            raise self._damaged(info, "it extends beyond the end of the file")
        return start

    def _check_size(self, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._damaged(info, "it is encrypted, or compressed by a method other than deflate")
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
