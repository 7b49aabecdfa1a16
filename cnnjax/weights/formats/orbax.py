"""Folders that Orbax wrote: the checkpoints of a run, one of them, or variables saved with a checkpointer."""

import contextlib
import functools
import json
import math
import operator
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.types import PyTree, UserError
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor

# Orbax is imported where it is used: that takes longer than to read a file of another format.

Place = tuple[str, ...]
ROOTS = ("ema", "params", "model_state")  # the weights in the state of a run
_DESCRIPTION = "_METADATA"  # a file in each folder of arrays that Orbax wrote
_ITEMS = ("state", "default")  # folders of arrays in a checkpoint: by cnnjax.checkpoint, by Orbax' manager alone


def recognizes(signature: Signature) -> bool:
    """True for a folder; the other formats are files."""
    return signature.path.is_dir()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the weights in the newest checkpoint of a run, in one checkpoint, or in variables that Orbax saved.

    From a run the weights that evaluation uses are taken: the moving average if there is one. Their CRC-32 is verified.

    Raises:
      UserError: the folder is damaged, or holds no checkpoint.
    """
    import orbax.checkpoint as ocp

    folder = _folder(path)
    sums = _checksums(folder)
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(folder.resolve()).tree
        flat = {_place(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        places = _places({place: leaf for place, leaf in flat.items() if place[0] in ROOTS} if sums else flat, sums)
        tensors = _tensors({key: flat[place] for key, place in places.items()}, _Reader(folder, tree, places, sums))
    except UserError:
        raise
    # Orbax and TensorStore raise any kind of exception, plain Exception too, for a damaged file.
    except Exception as error:
        raise _damaged(folder, error) from error
    yield Content("cnnjax", "Orbax checkpoint", tensors, _about(folder))


def _folder(path: Path) -> Path:
    """The folder of arrays: ``path`` itself, the one in a checkpoint, or in the newest checkpoint of a run."""
    if (path / _DESCRIPTION).is_file():
        return path
    for name in _ITEMS:
        if (path / name / _DESCRIPTION).is_file():
            return path / name
    runs = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [int(step.name) for step in runs.iterdir() if step.name.isdecimal() and step.is_dir()]
    if not steps:
        raise UserError(f"{path} is a folder without checkpoints: give a run folder, or one that Orbax wrote")
    step = runs / str(max(steps))
    return next((step / name for name in _ITEMS if (step / name).is_dir()), step / _ITEMS[0])


def _checksums(folder: Path) -> Mapping[str, int]:
    """Path in the state of a run → CRC-32, as ``checkpoint`` writes them; empty for other folders."""
    if not (folder.parent / "meta").is_dir():
        return {}
    try:
        sums = json.loads((folder.parent / "meta" / "metadata").read_bytes())["crc32"]
        return {str(place): int(crc) for place, crc in sums.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, error) from error


def _about(folder: Path) -> Mapping[str, str]:
    """The name of the model, as "variant", from the configuration of a run; else empty."""
    try:
        model = json.loads((folder.parent / "meta" / "metadata").read_bytes())["config"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"variant": model} if isinstance(model, str) else {}


def _place(path: tuple[Any, ...]) -> Place:
    return tuple(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)


def _places(flat: Mapping[Place, Any], sums: Mapping[str, int]) -> dict[str, Place]:
    """Key → place in the tree; in the state of a run only the weights that evaluation uses."""
    if not sums:
        return {"/".join(place): place for place in flat}
    roots = ("ema",) if any(name.startswith(".ema[") for name in sums) else ("params", "model_state")
    places = {"/".join(p if p[0] == "params" else p[1:]): p for p in flat if p[0] in roots}
    noted = {name for name in sums if name.startswith(tuple(f".{root}[" for root in roots))}
    if noted != {_noted(place) for place in places.values()}:
        raise ValueError(f"it has other arrays than the {len(noted)} with checksums")
    return places


def _noted(place: Place) -> str:
    """Name of a place in the state among the checksums."""
    return f".{place[0]}" + "".join(f"[{name!r}]" for name in place[1:])


class _Reader:
    """Reads all arrays when the first is asked for: reading them one by one takes far longer."""

    def __init__(self, folder: Path, tree: PyTree, places: Mapping[str, Place], sums: Mapping[str, int]) -> None:
        self.folder, self.tree, self.places, self.sums = folder, tree, places, sums
        self.lock = threading.Lock()
        self.arrays: dict[str, np.ndarray] | None = None

    def read(self, key: str) -> np.ndarray:
        with self.lock:
            if self.arrays is None:
                self.arrays = self._restored()
            return self.arrays[key]

    def _restored(self) -> dict[str, np.ndarray]:
        import orbax.checkpoint as ocp

        roots = {place[0] for place in self.places.values()}
        item = {root: self.tree[root] for root in roots}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        wanted = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        try:
            restored = ocp.PyTreeCheckpointHandler().restore(self.folder.resolve(), args=wanted)
            arrays = {key: functools.reduce(operator.getitem, place, restored) for key, place in self.places.items()}
            for key, place in self.places.items():
                if self.sums and zlib.crc32(np.ascontiguousarray(arrays[key]).data) != self.sums[_noted(place)]:
                    raise ValueError(f"{key} has another checksum than when it was written")
        # Orbax raises any kind of exception, see ``opened``.
        except Exception as error:
            raise _damaged(self.folder, error) from error
        return arrays


def _tensors(described: Mapping[str, Any], reader: _Reader) -> dict[str, Tensor]:
    for key, it in described.items():
        if math.prod(it.storage.chunk_shape) > math.prod(it.shape):
            raise ValueError(f"the pieces of {key} are larger than the array")
    return {
        key: Tensor(tuple(it.shape), np.dtype(it.dtype), functools.partial(reader.read, key))
        for key, it in described.items()
    }


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{folder} is a damaged checkpoint of Orbax ({reason}): give another, or save it again")


FORMAT = Format("an Orbax folder", recognizes, opened)
