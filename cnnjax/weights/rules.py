"""Rules of a publisher's layout: keys of a model's arrays, arrangement of kernels, exact conversions."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import numpy as np
from flax import traverse_util

from cnnjax.nn.norm import BatchNorm
from cnnjax.types import UserError
from cnnjax.weights.formats.content import Tensor
from cnnjax.weights.layouts import Layout

Place = tuple[str, ...]  # of an array in the variables: ("params", "stage1", "block1", "conv1", "conv", "kernel")
KERAS = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Slot(NamedTuple):
    """Array of a model that is to be filled."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Structure(NamedTuple):
    """Slots of a model, the epsilon of each BatchNorm by the path of the module, and all modules as they are called."""

    slots: dict[Place, Slot]
    epsilons: dict[Place, float]
    calls: tuple[Place, ...]


class Filling(NamedTuple):
    """Value of a slot: ``arrange`` of the file's array ``key`` (None: ``constant`` everywhere), minus the file's
    array ``minus``, times its array ``times``, plus the number ``plus``.
    """

    key: str | None
    arrange: Callable[[np.ndarray], np.ndarray] = lambda x: x
    constant: float = 0.0
    minus: str | None = None
    times: str | None = None
    plus: float = 0.0

    @property
    def keys(self) -> tuple[str, ...]:
        """The file's arrays that the value is made of."""
        return tuple(key for key in (self.key, self.minus, self.times) if key is not None)


@functools.lru_cache(maxsize=8)
def structure(model: linen.Module, image_shape: tuple[int, int, int]) -> Structure:
    """The structure of ``model`` for images of this shape; nothing is computed.

    Raises:
      UserError: the model cannot take such images.
    """
    epsilons: dict[Place, float] = {}
    calls: dict[Place, None] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        calls.setdefault(context.module.path)
        if isinstance(context.module, BatchNorm):
            epsilons[context.module.path] = context.module.epsilon
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with linen.intercept_methods(record):
        # A new function each time: JAX would not call the modules again for a function that it has traced.
        images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        try:
            tree = jax.eval_shape(lambda *args: model.init(*args), keys, images)
        except ValueError as error:  # usually because they are too small
            raise UserError(f"{type(model).__name__} cannot take images of {image_shape}: {error}") from error
    flat = traverse_util.flatten_dict(tree)
    return Structure({path: Slot(x.shape, np.dtype(x.dtype)) for path, x in flat.items()}, epsilons, tuple(calls))


class NoRuleError(Exception):
    """A layout has no rule for a module."""


def translated(layout: Layout, module: str) -> str:
    """The publisher's name of the module at our path; NoRuleError if no rule matches it."""
    for pattern, template in layout.keys:
        if found := re.fullmatch(pattern, module):
            numbered = re.compile(r"\{(\d)([+-]1)?\}")
            return numbered.sub(functools.partial(_group, found), template)
    raise NoRuleError(module)


def _group(found: re.Match[str], asked: re.Match[str]) -> str:
    group, change = found[int(asked[1])], asked[2]
    return group if change is None else str(int(group) + int(change))


def target(layout: Layout, kind: str, path: Place) -> str:
    """The publisher's key of our slot; ``kind`` is "keras" or "torch"."""
    name, leaf = translated(layout, "/".join(path[1:-1])), path[-1]
    layer, _, weight = name.partition(":")
    if kind == "torch":
        return f"{layer}.{weight or TORCH.get(leaf, leaf)}"
    if weight and leaf == "kernel":
        return f"{layer}/{weight}"
    is_norm = path[-2].startswith("norm")
    return f"{layer}/{'beta' if leaf == 'bias' and is_norm else KERAS.get(leaf, leaf)}"


def plan(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure) -> dict[Place, Filling]:
    """Fillings for all slots by a publisher's layout; their keys may be missing in the file."""
    fillings = {}
    for path, slot in needed.slots.items():
        key, leaf = target(layout, kind, path), path[-1]
        if key not in tensors and leaf in layout.absent:
            fillings[path] = Filling(None, constant=layout.absent[leaf])
            continue
        arrange = functools.partial(_arranged, kind == "torch", layout.flat.get("/".join(path[1:-1])), slot.shape)
        minus, plus = None, 0.0
        if leaf == "mean":
            minus = _bias_before(tensors, layout, kind, needed, path)
        if leaf == "var" and layout.epsilon is not None:
            plus = layout.epsilon - needed.epsilons[path[1:-1]]
        times = _scale_after(tensors, layout, kind, needed, path) if leaf in ("kernel", "mean") else None
        fillings[path] = Filling(key, arrange if leaf == "kernel" else lambda x: x, minus=minus, times=times, plus=plus)
    return fillings


def _bias_before(
    tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure, path: Place
) -> str | None:
    """The key of the bias of the convolution before a BatchNorm, where only the file has one: it shifts the mean."""
    conv = ("params", *path[1:-2], "conv", "bias")
    if path[-2] != "norm" or conv in needed.slots or (*conv[:-1], "kernel") not in needed.slots:
        return None
    key = target(layout, kind, conv)
    return key if key in tensors else None


def _scale_after(
    tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure, path: Place
) -> str | None:
    """The key of the scale of a convolution's BatchNorm, where only the file has one: it goes into kernel and mean."""
    norm = ("params", *path[1:-2], "norm")
    if path[-2] not in ("conv", "norm") or (*norm, "scale") in needed.slots or norm[1:] not in needed.epsilons:
        return None
    key = target(layout, kind, (*norm, "scale"))
    return key if key in tensors else None


def _arranged(torch: bool, flat: tuple[int, int, int] | None, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """The file's kernel as a view in our order of axes: HWIO, or [in, out] for a dense layer."""
    if torch and x.ndim == 2 and flat is not None and x.shape[1] == np.prod(flat):
        x = x.reshape(len(x), *flat).transpose(2, 3, 1, 0).reshape(x.shape[::-1])
    elif torch:
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if x.ndim == 4 and len(shape) == 2:  # a dense layer, in the file a convolution of all of its input
        return x[0, 0] if x.shape[:2] == (1, 1) else x.reshape(-1, x.shape[3])
    if not torch and x.ndim == 4 and len(shape) == 4 and x.shape[3] == shape[2] == 1 and x.shape[2] == shape[3]:
        return x.swapaxes(2, 3)  # depthwise: in the file [h, w, c, 1], here [h, w, 1, c]
    return x


def misfit(tensors: Mapping[str, Tensor], slot: Slot, path: Place, filling: Filling) -> str | None:
    """A line for the error, if an array has another shape or type than the slot that it would fill."""
    for key in filling.keys:
        if key not in tensors:
            continue
        tensor, wanted = tensors[key], slot.shape if key in (filling.key, filling.minus) else slot.shape[-1:]
        # An array that takes no memory shows what becomes of the shape.
        x = np.broadcast_to(np.zeros((), np.uint8), tensor.shape)
        if (filling.arrange(x) if key == filling.key else x).shape != wanted:
            return f"{'/'.join(path)}: {list(wanted)}, in the file {key} {list(tensor.shape)}"
        if not is_float(tensor.dtype):
            return f"{'/'.join(path)}: {slot.dtype}, in the file {key} {tensor.dtype}"
    return None


def is_float(dtype: np.dtype) -> bool:
    """True for real numbers: float16, bfloat16, float32, float64."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
