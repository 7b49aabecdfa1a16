"""Contract of all formats: each recognizes its files, and gives the weights in one."""

import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """Array in a file, not read yet.

    Attributes:
      shape: shape of the array.
      dtype: type of the array in the file.
      read: gives the values, perhaps as a read-only view of the mapped file, valid while the file is open; needs no
        more memory than ``shape`` and ``dtype`` imply, and raises UserError where the values are damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Content(NamedTuple):
    """Weights in a file.

    Attributes:
      names: source of the keys' names: "cnnjax" (``params/stem/conv/kernel``), "keras" (``conv1/kernel``), "torch"
        (``layer1.0.conv1.weight``) or, without names, "darknet".
      kind: name of the format in messages, such as "npz file".
      tensors: arrays by key, in the order of the file.
      about: of a file that cnnjax wrote: the class of the model as "model" with its "fields" as JSON, or the name of
        the variant as "variant".
      notes: what was chosen or left out in the file, for the screen: ends of a sentence that begins with its path.
      plain: names of layers without arrays, where the format has them.
    """

    names: str
    kind: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


class Signature(NamedTuple):
    """Signature of a file or a folder, by which its format is recognized.

    Attributes:
      path: path of the file or folder.
      head: first 512 bytes; empty for a folder.
      entries: names in a zip archive; empty for another file.
    """

    path: Path
    head: bytes
    entries: frozenset[str]


class Format(NamedTuple):
    """A format of files, declared as ``FORMAT`` by the module that reads it.

    Attributes:
      name: name in messages, such as ".npz".
      recognizes: signature → True for a file of this format. For any file, also a damaged one, at most one of all
        formats may return True.
      opened: opens a file of this format; raises UserError where it is damaged.
    """

    name: str
    recognizes: Callable[[Signature], bool]
    opened: Callable[[Path], AbstractContextManager[Content]]


_COUNTERS = ("num_batches_tracked", "n_averaged")  # of torch's BatchNorm and of its AveragedModel


def from_keys(kind: str, tensors: Mapping[str, Tensor]) -> Content:
    """Content of a format that does not name the publisher: the form of the keys shows it. Counters are left out."""
    kept = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] not in _COUNTERS}
    return Content(_names_of(kept), kind, kept)


def _names_of(keys: Iterable[str]) -> str:
    if all(key.startswith(("params/", "batch_stats/")) for key in keys):
        return "cnnjax"
    return "keras" if all("/" in key for key in keys) else "torch"


def mapped(path: Path) -> np.ndarray:
    """Bytes of a file, uint8 [n], read-only; each is read from the disk when it is used."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
