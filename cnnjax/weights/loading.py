"""Weights from files and published ones, into the variables of a model; and back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import flax.linen as linen
import jax
import numpy as np
from flax import traverse_util

from cnnjax.types import Key, PyTree, UserError
from cnnjax.weights import files, rules
from cnnjax.weights.files import Content
from cnnjax.weights.rules import Filling, Slot, Structure

Tree = tuple[str, ...]
_THREADS = 8
_LINE = 16  # float32 in a cache line
_ALIGNED = 64  # bytes: JAX uses memory that begins at a multiple without a copy


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
    # Without a head the file's is of no use; to know its keys, look at the model with one.
    classes = getattr(type(model), "num_classes", None) or 1
    whole = needed if _has_head(model) else rules.structure(model.clone(num_classes=classes), image_shape)
    optional = frozenset(whole.slots.keys() - needed.slots.keys())
    if head == "new":
        optional |= frozenset(path for path in needed.slots if "head" in path)
    with files.opened(path) as content:
        plan = rules.match(content, model, whole, optional, str(path))
        host = _values(content, needed, plan, path)
    if reverse_channels:
        host |= _reversed(host, image_shape[-1], path)
    values = {where: jax.device_put(value) for where, value in host.items()}
    fresh = needed.slots.keys() - values.keys()
    if fresh:
        values |= _initial(model, image_shape, fresh, jax.random.key(0) if key is None else key)
    return traverse_util.unflatten_dict({where: values[where] for where in needed.slots})


def _has_head(model: linen.Module) -> bool:
    return getattr(model, "num_classes", 0) is not None


def _values(content: Content, needed: Structure, plan: dict[Tree, Filling], path: Path) -> dict[Tree, np.ndarray]:
    """Every planned slot's value, in memory of its own."""

    def value(where: Tree) -> np.ndarray:
        slot, filling = needed.slots[where], plan[where]
        result = _empty(slot)
        if filling.key is None:
            result[...] = filling.constant
        else:
            _copy(result, filling.arrange(content.tensors[filling.key].read()))
        if filling.minus is not None:
            result -= content.tensors[filling.minus].read()
        # Our own files hold what the line after this one made of others'.
        least = -needed.epsilons[where[1:-1]] if where[-1] == "var" and content.names == "cnnjax" else 0.0
        _check_values(where, result, filling, path, least)
        if filling.plus:
            # May end below zero, where the file's epsilon is the smaller: what counts is the sum with the model's.
            result += filling.plus
        return result

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(plan, pool.map(value, plan), strict=True))


def _copy(result: np.ndarray, x: np.ndarray) -> None:
    """``result[...] = x``; a transposed array a cache line at a time, which is 3 to 8 times faster."""
    if x.ndim < 2 or x.strides[-1] == x.itemsize:
        np.copyto(result, x, casting="same_kind")
        return
    for start in range(0, x.shape[-1], _LINE):
        np.copyto(result[..., start : start + _LINE], x[..., start : start + _LINE], casting="same_kind")


def _check_values(where: Tree, value: np.ndarray, filling: Filling, path: Path, least: float) -> None:
    # The sum is one pass; it overflows for finite values only where they are no weights either.
    if not np.isfinite(value.sum()):
        raise UserError(f"{path}: {filling.key} holds NaN or infinity: the file is damaged, or its training diverged")
    if where[-1] == "var" and value.min(initial=least) < least:
        raise UserError(f"{path}: {filling.key} is a variance below zero: the file is damaged")


def _empty(slot: Slot) -> np.ndarray:
    size = int(np.prod(slot.shape)) * slot.dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(slot.dtype).reshape(slot.shape)


def _reversed(values: dict[Tree, np.ndarray], channels: int, path: Path) -> dict[Tree, np.ndarray]:
    """The kernels that meet the images' channels, turned round."""
    first = [where for where, x in values.items() if where[-1] == "kernel" and x.ndim == 4 and x.shape[2] == channels]
    if channels != 3 or len(first) != 1:
        raise UserError(
            f"{path}: reverse_channels wants one convolution of 3 channels, found {len(first)} of {channels}"
        )
    return {first[0]: np.ascontiguousarray(values[first[0]][:, :, ::-1])}


def _initial(
    model: linen.Module, image_shape: tuple[int, int, int], fresh: set[Tree], key: Key
) -> dict[Tree, jax.Array]:
    """Initial values of the slots ``fresh``; XLA leaves out the others."""

    @jax.jit
    def init(key: Key) -> dict[Tree, jax.Array]:
        flat = traverse_util.flatten_dict(model.init(key, np.zeros((1, *image_shape), np.float32)))
        return {where: flat[where] for where in sorted(fresh)}

    return init(key)
