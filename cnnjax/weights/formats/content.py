"""The contract of all formats: how a module recognizes its files, and the weights that it finds in one."""

import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """An array in a file, not read yet.

    Attributes:
      shape: of the array.
      dtype: of the array in the file.
      read: gives the values, perhaps as a read-only view of the mapped file, valid while the file is open; takes no
        more memory than ``shape`` and ``dtype`` say, and raises UserError where the values are damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Content(NamedTuple):
    """The weights in a file.

    Attributes:
      names: whose names the keys are: "cnnjax" (``params/stem/conv/kernel``), "keras" (``conv1/kernel``) or "torch"
        (``layer1.0.conv1.weight``).
      kind: name of the format in messages, such as "npz file".
      tensors: arrays by key, in the order of the file.
      about: of a file that cnnjax wrote: the class of the model as "model" with its "fields" as JSON, or the name of
        the variant as "variant".
    """

    names: str
    kind: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, str] = MappingProxyType({})


class Signature(NamedTuple):
    """The beginning of a file, or what else its format is told by.

    Attributes:
      path: of the file or folder.
      head: its first 512 bytes; none of a folder.
      entries: names in a zip archive; none of another file.
    """

    path: Path
    head: bytes
    entries: frozenset[str]


class Format(NamedTuple):
    """A format of files, declared as ``FORMAT`` by the module that reads it.

    Attributes:
      name: of the format in messages, such as ".npz".
      recognizes: tells from the signature whether a file has this format. Of all formats only one may say so, of
        damaged files too.
      opened: opens a file of this format; raises UserError where it is damaged.
    """

    name: str
    recognizes: Callable[[Signature], bool]
    opened: Callable[[Path], AbstractContextManager[Content]]


def from_keys(kind: str, tensors: Mapping[str, Tensor]) -> Content:
    """The content of a format that does not say whose names its keys are: their form tells.

    The prefix ``module.`` of torch's DataParallel is taken off, the counters ``num_batches_tracked`` are left out.
    """
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    prefix = "module." if all(key.startswith("module.") for key in kept) else ""
    return Content(_names_of(kept), kind, {key.removeprefix(prefix): tensor for key, tensor in kept.items()})


def _names_of(keys: Iterable[str]) -> str:
    if all(key.startswith(("params/", "batch_stats/")) for key in keys):
        return "cnnjax"
    return "keras" if all("/" in key for key in keys) else "torch"


def mapped(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 [n], read-only; only those that somebody looks at are read from the disk."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
