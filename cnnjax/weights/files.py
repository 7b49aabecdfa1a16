"""What a file of weights holds: whose names, which arrays; its kind is told from its content."""

import contextlib
import importlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cnnjax.types import UserError

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
KINDS = "Keras .h5, .weights.h5 or .keras, .safetensors, torch .pth, .npz or an Orbax folder"


class Tensor(NamedTuple):
    """An array in a file.

    ``read()`` gives its values, perhaps as a read-only view of the mapped file, valid while the file is open. It raises
    UserError where they are damaged, and takes no more memory than ``shape`` and ``dtype`` say.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Content(NamedTuple):
    """What a file holds.

    names: whose names the keys are: "cnnjax" (``params/stem/conv/kernel``), "keras" (``conv1/kernel``) or "torch"
      (``layer1.0.conv1.weight``).
    what: the kind of file, as messages say it.
    tensors: by key, in the order of the file.
    about: of our own files: "fields" of the model as JSON, or its name as "variant".
    """

    names: str
    what: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, str] = MappingProxyType({})


def names_of(keys: Iterable[str]) -> str:
    """Whose names these are, by their look."""
    keys = list(keys)
    if all(key.startswith(("params/", "batch_stats/")) for key in keys):
        return "cnnjax"
    return "keras" if all("/" in key for key in keys) else "torch"


def by_look(what: str, tensors: Mapping[str, Tensor]) -> Content:
    """Of a kind of file that anybody's weights may be in. The prefix ``module.`` of torch's DataParallel is taken off,
    ``num_batches_tracked`` left out.
    """
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    prefix = "module." if all(key.startswith("module.") for key in kept) else ""
    return Content(names_of(kept), what, {key.removeprefix(prefix): tensor for key, tensor in kept.items()})


def mapped(path: Path) -> np.ndarray:
    """uint8 [n], read-only: all bytes of the file, of which only those are read that somebody looks at."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The content of a file of weights, or of a folder that Orbax wrote.

    Raises:
      UserError: there is no such file, it is of no kind that is known, or it is damaged.
    """
    with _reader(path)(path) as content:
        if not content.tensors:
            raise UserError(f"{path}: a {content.what} without weights")
        yield content


def _reader(path: Path) -> Callable[[Path], contextlib.AbstractContextManager[Content]]:
    # Only what the kind of file needs is imported: Orbax alone takes longer than reading most files.
    return importlib.import_module(f"cnnjax.weights.{_kind(path)}").opened


def _kind(path: Path) -> str:
    """The module that reads the file."""
    from cnnjax.weights import mapped_zip, torch_file  # they need this module

    if path.is_dir():
        return "orbax_file"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a file of weights, or a tag of weights.published()") from error
    if start.startswith(HDF5):
        return "hdf5"
    if torch_file.is_torch(start):
        return "torch_file"
    if start.startswith(ZIP):
        names = {entry.filename for entry in mapped_zip.directory(path)}
        if "model.weights.h5" in names or "model.weights.json" in names:
            return "keras_file"
        return "npz" if names and all(name.endswith(".npy") for name in names) else "torch_file"
    if start[8:9] == b"{":
        return "safetensors_file"
    raise UserError(f"{path} begins with {start[:8]!r}, which no file of weights does: expected {KINDS}")
