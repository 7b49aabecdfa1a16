"""Files of ``torch.save``, in its zip format and in the legacy one before it, read without torch.

Each holds a pickle that describes the tensors, and the storages with their values. The CRC-32 of zip entries is
verified; the legacy format has no checksums, so a flipped bit of a value goes unnoticed there.
"""

import contextlib
import io
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.types import UserError
from cnnjax.weights.formats import mapped_zip, pickle, state_dicts
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor, from_keys, mapped
from cnnjax.weights.formats.mapped_zip import MappedZip
from cnnjax.weights.formats.pickle_values import Storage, TorchTensor
from cnnjax.weights.formats.state_dicts import SAVE_AGAIN

PICKLE_LIMIT = 64 << 20  # bytes
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format: torch.serialization
_MAGIC_PICKLED = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
_TAR = b"ustar"  # at byte 257

Fetch = Callable[[Storage], np.ndarray]  # gives the bytes of a storage


def recognizes(signature: Signature) -> bool:
    """True for a zip archive with the pickle of ``torch.save``, the legacy format, and the tar archive before that."""
    in_zip = any(_is_pickle(name) for name in signature.entries)
    return in_zip or _is_legacy(signature.head) or _is_tar(signature.head)


def _is_pickle(entry: str) -> bool:
    return entry.split("/")[1:] == ["data.pkl"]


def _is_legacy(head: bytes) -> bool:
    return head.startswith(b"\x80") and _MAGIC_PICKLED in head[:32]


def _is_tar(head: bytes) -> bool:
    return head[257:262] == _TAR


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens a state dict that torch saved, by itself or in what a training loop saved (``state_dicts.chosen``).

    Counters such as ``num_batches_tracked`` are left out.

    Raises:
      UserError: the file is of another format, damaged, or asks for more than tensors and plain containers.
    """
    with path.open("rb") as file:
        head = file.read(512)
    saved, fetch = _zipped(path) if head.startswith(mapped_zip.MAGIC) else _legacy(path, head)
    state, notes = state_dicts.chosen(saved, path)
    content = from_keys("torch file", {key: _tensor(path, key, it, fetch) for key, it in state.items()})
    yield content._replace(notes=notes)


def _check_legacy(path: Path, head: bytes) -> None:
    if _is_tar(head):
        raise UserError(f"{path} is a tar archive, as torch wrote before 0.1.10: {SAVE_AGAIN}")
    if not _is_legacy(head):
        raise UserError(f"{path} begins with {head[:8]!r}: expected a file of torch.save, or it is cut off")


def _tensor(path: Path, key: str, it: TorchTensor, fetch: Fetch) -> Tensor:
    if not _fits(it):
        what = f"{key[:80]!r} of size {it.size}, stride {it.stride}, offset {it.offset}"
        raise UserError(
            f"{path}: {what[:300]} does not fit its storage of {it.storage.numel} elements: the file is damaged, or "
            "it is an expanded tensor, which must be saved as .contiguous()"
        )

    def read() -> np.ndarray:
        dtype = it.storage.dtype
        if 0 in it.size:
            return np.zeros(it.size, dtype)
        strides = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(it.size, it.stride, strict=True)]
        return np.ndarray(it.size, dtype, fetch(it.storage), it.offset * dtype.itemsize, strides)

    return Tensor(it.size, it.storage.dtype, read)


def _fits(it: TorchTensor) -> bool:
    """True if all elements lie in the storage, each at its own place: else a small file could claim all memory."""
    if 0 in it.size:
        return math.prod(n or 1 for n in it.size) < 1 << 31
    last = 0
    for step, n in sorted((step, n) for n, step in zip(it.size, it.stride, strict=True) if n > 1):
        if step <= last:
            return False
        last += (n - 1) * step
    return it.offset + last < it.storage.numel


def _legacy(path: Path, head: bytes) -> tuple[Any, Fetch]:
    """Reads five pickles, then for each storage its number of elements (int64) and the elements."""
    _check_legacy(path, head)
    memory = mapped(path)
    limit = min(len(memory), PICKLE_LIMIT)
    with path.open("rb") as file, mmap.mmap(file.fileno(), limit, access=mmap.ACCESS_READ) as pickles:
        magic, protocol, system = (pickle.load(pickles, path)[0] for _ in range(3))
        if magic != MAGIC or protocol != PROTOCOL or type(system) is not dict:
            raise UserError(f"{path} begins with a damaged header: fetch it again")
        if system.get("little_endian") is not True:
            raise UserError(f"{path} was written on a big-endian machine: {SAVE_AGAIN}")
        saved, storages = pickle.load(pickles, path)
        keys, _ = pickle.load(pickles, path)
        at = pickles.tell()
    data = _legacy_data(path, memory, at, keys, storages)
    return saved, lambda storage: data[storage.key]


def _legacy_data(
    path: Path, memory: np.ndarray, at: int, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, np.ndarray]:
    """The bytes of each storage, in the order of ``keys``; they begin at byte ``at`` and end with the file."""
    # Only texts, or sorting may fail; the sorted lists differ where a key is missing, is not wanted or occurs twice.
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise UserError(
            f"{path} lists other storages than the {len(storages)} that its tensors have: damaged, fetch it again"
        )
    data = {}
    for key in keys:
        storage = storages[key]
        numel = int.from_bytes(memory[at : at + 8].tobytes(), "little", signed=True)
        end = at + 8 + storage.numel * storage.dtype.itemsize
        if numel != storage.numel or end > len(memory):
            what = f"storage {key[:80]!r} has {numel} elements, expected {storage.numel}"
            raise UserError(f"{path}: {what}, up to byte {end} of {len(memory)}: damaged, fetch it again")
        data[key] = memory[at + 8 : end]
        at = end
    if at != len(memory):
        raise UserError(f"{path} has {len(memory) - at} bytes after its last storage: damaged, fetch it again")
    return data


def _zipped(path: Path) -> tuple[Any, Fetch]:
    """Reads ``<root>/data.pkl``, for each storage ``<root>/data/<key>``, and ``<root>/byteorder`` since torch 2.1."""
    archive = MappedZip(path, mapped(path))
    root = _root(path, archive.infos)
    order = archive.infos.get(f"{root}/byteorder")
    if order and (order.file_size > 6 or archive.read(order.filename).tobytes() != b"little"):
        raise UserError(f"{path} was not written on a little-endian machine: {SAVE_AGAIN}")
    if archive.infos[f"{root}/data.pkl"].file_size > PICKLE_LIMIT:
        raise UserError(f"{path}: its data.pkl has more than {PICKLE_LIMIT >> 20} MiB: {SAVE_AGAIN}")
    saved, storages = pickle.load(io.BytesIO(archive.read(f"{root}/data.pkl").tobytes()), path)
    for key, storage in storages.items():
        info, size = archive.infos.get(f"{root}/data/{key}"), storage.numel * storage.dtype.itemsize
        if info is None or info.file_size != size:
            found = "is not there" if info is None else f"has {info.file_size} bytes"
            raise UserError(f"{path}: storage {key[:80]!r} {found}, expected {size} bytes: damaged, fetch it again")
    return saved, lambda storage: archive.read(f"{root}/data/{storage.key}")


def _root(path: Path, names: Iterable[str]) -> str:
    """The folder that holds all entries."""
    names = list(names)
    roots = [name.partition("/")[0] for name in names if _is_pickle(name)]
    if any(name.split("/")[1:2] in (["code"], ["constants.pkl"]) for name in names):
        raise UserError(
            f"{path} is a TorchScript model: load it with torch.jit and save its weights: "
            "torch.save(model.state_dict(), ...)"
        )
    if len(roots) != 1:
        raise UserError(f"{path} is a zip archive with {len(roots)} data.pkl in it, expected 1, as torch.save writes")
    return roots[0]


FORMAT = Format("torch .pth", recognizes, opened)
