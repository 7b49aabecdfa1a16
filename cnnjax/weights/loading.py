"""Weights of a file, arranged into the variables of a model."""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import flax.linen as linen
import jax
import numpy as np
from flax import traverse_util

from cnnjax import text
from cnnjax.types import Key, PyTree, UserError
from cnnjax.weights import formats, matching, rules
from cnnjax.weights.fitting import Wanted
from cnnjax.weights.formats.content import Content
from cnnjax.weights.rules import Filling, Place, Slot, Structure

_THREADS = 8
_LINE = 16  # float32 values in a cache line
_ALIGNED = 64  # bytes: JAX uses memory that begins at a multiple of it without a copy


def read(
    path: Path,
    model: linen.Module,
    image_shape: tuple[int, int, int],
    *,
    head: Literal["strict", "new"] = "strict",
    key: Key | None = None,
    reverse_channels: bool = False,
) -> PyTree:
    """The variables of ``model`` with the weights in the file; see ``weights.load``."""
    needed = rules.structure(model, image_shape)
    # A model without a head leaves out the head of the file, whose keys the same model with a head shows.
    classes = getattr(type(model), "num_classes", None) or 1
    whole = needed if _has_head(model) else rules.structure(model.clone(num_classes=classes), image_shape)
    optional = frozenset(whole.slots.keys() - needed.slots.keys())
    if head == "new":
        optional |= frozenset(path for path in needed.slots if "head" in path)

    def body() -> frozenset[Place]:
        if hasattr(model, "base"):  # a network around another, which has no form without its own layers
            return frozenset(path for path in needed.slots if path[1] == "base")
        bare = rules.structure(model.clone(num_classes=None), image_shape) if _has_head(model) else needed
        return frozenset(bare.slots)

    with formats.opened(path) as content:
        wanted = Wanted(model, whole, optional, head == "new", body)
        plan, content = matching.match(content, wanted, str(path))
        host = _values(content, needed, plan, path)
    if content.notes:
        print(text.one_line(f"{path}: {'; '.join(content.notes)}"), file=sys.stderr)
    if reverse_channels:
        host |= _reversed(host, image_shape[-1], path)
    values = {where: jax.device_put(value) for where, value in host.items()}
    fresh = needed.slots.keys() - values.keys()
    if fresh:
        values |= _initial(model, image_shape, fresh, jax.random.key(0) if key is None else key)
    return traverse_util.unflatten_dict({where: values[where] for where in needed.slots})


def _has_head(model: linen.Module) -> bool:
    return getattr(model, "num_classes", 0) is not None


def _values(content: Content, needed: Structure, plan: Mapping[Place, Filling], path: Path) -> dict[Place, np.ndarray]:
    """The value of every planned slot, in memory of its own."""

    def value(where: Place) -> np.ndarray:
        slot, filling = needed.slots[where], plan[where]
        result = _empty(slot)
        if filling.key is None:
            result[...] = filling.constant
        else:
            _copy(result, filling.arrange(content.tensors[filling.key].read()))
        if filling.minus is not None:
            result -= content.tensors[filling.minus].read()
        if filling.times is not None:
            result *= content.tensors[filling.times].read()
        # A file that cnnjax saved may hold variances below zero, which come from ``plus`` (see below).
        least = -needed.epsilons[where[1:-1]] if where[-1] == "var" and content.names == "cnnjax" else 0.0
        _check_values(where, result, filling, path, least)
        if filling.plus:
            # The variance may become negative, but not its sum with the model's epsilon.
            result += filling.plus
        return result

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(plan, pool.map(value, plan), strict=True))


def _copy(result: np.ndarray, x: np.ndarray) -> None:
    """Does ``result[...] = x``; for a transposed array a cache line at a time, which is 3 to 8 times faster."""
    if x.ndim < 2 or x.strides[-1] == x.itemsize:
        np.copyto(result, x, casting="same_kind")
        return
    for start in range(0, x.shape[-1], _LINE):
        np.copyto(result[..., start : start + _LINE], x[..., start : start + _LINE], casting="same_kind")


def _check_values(where: Place, value: np.ndarray, filling: Filling, path: Path, least: float) -> None:
    # A sum takes one pass; finite values whose sum overflows are not weights either.
    if not np.isfinite(value.sum()):
        raise UserError(f"{path}: {filling.key} holds NaN or infinity: the file is damaged, or its training diverged")
    if where[-1] == "var" and value.min(initial=least) < least:
        raise UserError(f"{path}: {filling.key} is a variance below zero: the file is damaged")


def _empty(slot: Slot) -> np.ndarray:
    """An array for a slot, in aligned memory."""
    size = int(np.prod(slot.shape)) * slot.dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(slot.dtype).reshape(slot.shape)


def _reversed(values: dict[Place, np.ndarray], channels: int, path: Path) -> dict[Place, np.ndarray]:
    """The kernel of the first convolution with its input channels in reverse order."""
    first = [where for where, x in values.items() if where[-1] == "kernel" and x.ndim == 4 and x.shape[2] == channels]
    if channels != 3 or len(first) != 1:
        raise UserError(
            f"{path}: reverse_channels needs images of 3 channels and one convolution of them, found {len(first)} "
            f"of {channels} channels"
        )
    return {first[0]: np.ascontiguousarray(values[first[0]][:, :, ::-1])}


def _initial(
    model: linen.Module, image_shape: tuple[int, int, int], fresh: set[Place], key: Key
) -> dict[Place, jax.Array]:
    """Initial values of the slots ``fresh``; XLA does not compute the others."""

    @jax.jit
    def init(key: Key) -> dict[Place, jax.Array]:
        flat = traverse_util.flatten_dict(model.init(key, np.zeros((1, *image_shape), np.float32)))
        return {where: flat[where] for where in sorted(fresh)}

    return init(key)
