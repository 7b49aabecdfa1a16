"""Weights that Keras wrote as HDF5: ``.weights.h5`` of Keras 3, and the legacy ``.h5`` of weights or of a whole model.

The HDF5 library reads the structure; values are views of the mapped file. HDF5 has no checksums, so a flipped bit of a
value goes unnoticed. The structure is checked for contradictions: no two arrays share bytes, none overlaps with
structure, each was written, and no link leaves the file.
"""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5s, h5t

from cnnjax.types import UserError
from cnnjax.weights.formats import keras_names
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor, mapped
from cnnjax.weights.formats.keras_names import Layer

MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_OBJECTS = 100_000
_LONGEST = 1 << 12  # bytes of a text
_GUESSED = 512  # bytes that the library reads before it knows an object's size
_HEADER = 16  # bytes, the least size of an object
_HEAP_HEADER = 16  # bytes of the header of a heap, and of each object in it
_CODES = [*("<f2", "<f4", "<f8"), *(f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]
_NUMBERS = {code: h5t.py_create(np.dtype(code)) for code in _CODES}


class _File(io.RawIOBase):
    """Mapped file that the HDF5 library reads; notes which bytes are structure.

    Attributes:
      memory: all bytes of the file, uint8 [n].
      structure: (first byte, end) of each piece that the library has read.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self.memory, self.position = memory, 0
        self.structure: set[tuple[int, int]] = set()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.memory)}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        start, size = self.position, len(buffer)
        found = self.memory[start : start + size]
        if len(found) < size:
            raise ValueError(f"it refers to byte {start + size} of {len(self.memory)}")
        if size >= 4 and found[:4].tobytes() == b"GCOL":
            _check_heap(self.memory[start:])
        guessed = size == _GUESSED or start + size == len(self.memory)
        self.structure.add((start, start + (_HEADER if guessed else size)))
        buffer[:] = found.data
        self.position += size
        return size

    def note_header(self, address: int) -> None:
        """Notes the header of an object; the library may have read more than the header."""
        header = self.memory[address : address + _HEADER].tobytes()
        if header[0] == 1:  # the format that has its size here
            self.structure.add((address, address + _HEADER + int.from_bytes(header[8:12], "little")))


def _check_heap(memory: np.ndarray) -> None:
    """Walks over the objects of a global heap; raises ValueError if it is damaged.

    On a damaged heap the library loops forever, or writes past the end of a buffer.
    """
    size = int.from_bytes(memory[8:16].tobytes(), "little")
    if not _HEAP_HEADER <= size <= len(memory):
        raise ValueError(f"a heap of {size} bytes")
    at = _HEAP_HEADER
    while at + _HEAP_HEADER <= size:
        index = int.from_bytes(memory[at : at + 2].tobytes(), "little")
        length = int.from_bytes(memory[at + 8 : at + 16].tobytes(), "little")
        # Object 0 is the free space, and its length includes the header.
        step = _HEAP_HEADER + -(-length // 8) * 8 if index else length
        if step < _HEAP_HEADER or at + step > size or (index and length > _LONGEST):
            raise ValueError(f"a heap with an object of {length} bytes")
        at += step


def recognizes(signature: Signature) -> bool:
    """True for a file that begins with HDF5's signature."""
    return signature.head.startswith(MAGIC)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the weights in an HDF5 file by Keras.

    Raises:
      UserError: it is damaged, not by Keras, or does not name its layers.
    """
    with content(path, mapped(path), "Keras HDF5 file", {}) as result:
        yield result


@contextlib.contextmanager
def content(path: Path, memory: np.ndarray, kind: str, layers: Mapping[str, Layer]) -> Iterator[Content]:
    """Opens the weights in the bytes of an HDF5 file.

    Args:
      path: of the file, for messages.
      memory: uint8 [n].
      kind: name of the format, for messages.
      layers: group in the file, such as ``layers/conv2d_1`` → layer, for files that do not name their layers.

    Raises:
      UserError: it is damaged, not by Keras, or does not name its layers.
    """
    view = _File(memory)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(view, "r"))
            tensors, plain = _weights(path, file.id, view, layers)
        except UserError:
            raise
        # The library raises every kind of exception for a damaged file.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is a damaged HDF5 file, or not by Keras ({reason}): fetch it again") from error
        yield Content("keras", kind, tensors, plain=plain)


def _objects(file: h5f.FileID, view: _File) -> tuple[dict[str, h5g.GroupID], dict[str, h5d.DatasetID]]:
    """All groups and all datasets by path; ValueError if one has two paths."""
    groups: dict[str, h5g.GroupID] = {}
    datasets: dict[str, h5d.DatasetID] = {}
    root = h5o.open(file, b"/")
    seen, pending = {h5o.get_info(root).addr}, [("", root)]
    while pending:
        path, group = pending.pop()
        groups[path], inner = group, []
        for name in _names(group):
            it, where = h5o.open(group, name), f"{path}/{name.decode()}".lstrip("/")
            address = h5o.get_info(it).addr
            if address in seen or len(seen) > _MOST_OBJECTS:
                raise ValueError(f"{where} has two names")
            seen.add(address)
            view.note_header(address)
            if isinstance(it, h5g.GroupID):
                inner.append((where, it))
            elif isinstance(it, h5d.DatasetID):
                datasets[where] = it
            else:
                raise ValueError(f"{where} is neither group nor array")
        pending += reversed(inner)
    return groups, datasets


def _names(group: h5g.GroupID) -> list[bytes]:
    """Names in a group; ValueError if one is a link or occurs twice."""
    links: list[tuple[bytes, int]] = []

    def visit(name: bytes, info: Any) -> bool | None:
        links.append((name, info.type))
        return True if len(links) > _MOST_OBJECTS else None  # True ends the walk

    group.links.iterate(visit, info=True)
    for name, kind in links:
        if kind != h5l.TYPE_HARD:
            raise ValueError(f"{name.decode(errors='replace')[:80]} is a link to elsewhere, which Keras does not write")
    names = [name for name, _ in links]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return names


def _tensor(name: str, dataset: h5d.DatasetID, memory: np.ndarray) -> Tensor:
    """The array of a dataset, a view of ``memory``; ValueError if its values do not lie there in one piece."""
    if dataset.get_space().get_simple_extent_type() == h5s.NULL:
        raise ValueError(f"{name} has no extent")
    shape, dtype = dataset.shape, _dtype(name, dataset.get_type())
    size, stored = math.prod(shape) * dtype.itemsize, dataset.get_storage_size()
    creation, start = dataset.get_create_plist(), dataset.get_offset() or 0
    if creation.get_layout() != h5d.CONTIGUOUS or creation.get_external_count():
        # Compressed arrays too: the file describes their pieces with many figures that cannot be verified.
        raise ValueError(f"the values of {name} are in pieces or in another file, which Keras does not write")
    if stored != size or (size and not 0 < start <= len(memory) - size):
        raise ValueError(f"{name} has {size} bytes, of which {stored} were written")
    return Tensor(shape, dtype, lambda: memory[start : start + size].view(dtype).reshape(shape))


def _dtype(name: str, kind: h5t.TypeID) -> np.dtype:
    """Type of the numbers; ValueError for types that the library would convert without notice."""
    for code, known in _NUMBERS.items():
        if kind.equal(known):
            return np.dtype(code)
    if isinstance(kind, h5t.TypeOpaqueID) and kind.get_size() == 2:  # as h5py stores bfloat16
        return np.dtype(ml_dtypes.bfloat16)
    raise ValueError(f"{name} is not of little-endian numbers")


def _check_places(datasets: Mapping[str, h5d.DatasetID], file: _File) -> None:
    """Raises ValueError if an array overlaps with another or with structure: an address in the file is wrong."""
    found = [(it.get_offset(), it.get_storage_size()) for it in datasets.values()]
    spans = sorted((start, start + size) for start, size in found if start is not None)
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise ValueError(f"two arrays at byte {start}")
    if not spans:
        return
    starts, ends = np.array(spans, np.int64).T
    structure = np.array(sorted(file.structure), np.int64)
    before = np.searchsorted(starts, structure[:, 1]) - 1  # the last array that begins before the piece's end
    wrong = (before >= 0) & (ends[before] > structure[:, 0])
    if wrong.any():
        raise ValueError(f"an array where structure is, at byte {structure[wrong][0, 0]}")


def _weights(
    path: Path, file: h5f.FileID, view: _File, layers: Mapping[str, Layer]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The arrays by ``layer/weight``, without the state of the optimizer and the seeds of Dropout; layers without any.

    A layer without arrays has the name of its group, which Keras 3 makes from its class.
    """
    groups, datasets = _objects(file, view)
    root = "model_weights/" if "model_weights" in groups else ""
    names = [
        name.removeprefix(root) for name in datasets if name.startswith(root) and not name.startswith("optimizer/")
    ]
    tensors = {name: _tensor(root + name, datasets[root + name], view.memory) for name in names}
    shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype.kind != "u"}
    if all(re.search(r"(^|/)vars/\d+$", name) for name in shapes):
        layer = {group: _layer(groups[f"{root}{group}/vars".lstrip("/")]) for group in map(keras_names.group, shapes)}
        keys = keras_names.by_position(path, shapes, layer, layers)
    else:
        keys = keras_names.legacy(shapes)
    _check_places(datasets, view)
    parts = {part for name in names for part in name.split("/")}
    plain = {group.removesuffix("/vars").rpartition("/")[2] for group in groups if group.startswith(root)} - parts
    return {key: tensors[name] for key, name in keys.items()}, tuple(sorted(plain))


def _layer(group: h5g.GroupID) -> str | None:
    """The name of the layer that a group belongs to; None where the file does not name it, as in early Keras 3."""
    if not h5a.exists(group, b"name"):
        return None
    kind = h5a.open(group, b"name")
    if kind.shape != () or not isinstance(kind.get_type(), h5t.TypeStringID) or kind.get_storage_size() > _LONGEST:
        raise ValueError("the name of a layer is not a text")
    name = h5py.AttributeManager(h5py.Group(group))["name"]
    return name.decode() if isinstance(name, bytes) else name


FORMAT = Format("Keras .h5 or .weights.h5", recognizes, opened)
