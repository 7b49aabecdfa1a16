"""Matching of a file's arrays with those of a model: rules for keys, arrangement of kernels, exact conversions."""

import contextlib
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import numpy as np
from flax import traverse_util

from cnnjax.nn.norm import BatchNorm
from cnnjax.types import UserError
from cnnjax.weights import layouts
from cnnjax.weights.formats.content import Content, Tensor
from cnnjax.weights.layouts import Layout

Place = tuple[str, ...]  # of an array in the variables: ("params", "stage1", "block1", "conv1", "conv", "kernel")
SHOWN = 20  # most lines of each list in an error
KERAS = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Slot(NamedTuple):
    """Array of a model that is to be filled."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Structure(NamedTuple):
    """Slots of a model, and the epsilon of each BatchNorm by the path of the module."""

    slots: dict[Place, Slot]
    epsilons: dict[Place, float]


class Filling(NamedTuple):
    """Value of a slot: ``arrange`` of the file's array ``key`` (None: ``constant`` everywhere), minus the file's
    array ``minus``, plus the number ``plus``.
    """

    key: str | None
    arrange: Callable[[np.ndarray], np.ndarray] = lambda x: x
    constant: float = 0.0
    minus: str | None = None
    plus: float = 0.0


@functools.lru_cache(maxsize=8)
def structure(model: linen.Module, image_shape: tuple[int, int, int]) -> Structure:
    """The structure of ``model`` for images of this shape; nothing is computed.

    Raises:
      UserError: the model cannot take such images.
    """
    epsilons: dict[Place, float] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
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
    return Structure({path: Slot(x.shape, np.dtype(x.dtype)) for path, x in flat.items()}, epsilons)


def match(
    content: Content, model: linen.Module, needed: Structure, optional: frozenset[Place], where: str
) -> dict[Place, Filling]:
    """Fillings from ``content`` for every slot of ``needed`` that is not ``optional``.

    Args:
      content: arrays of the file.
      model: model that takes the weights.
      needed: structure of the model with a head.
      optional: slots that stay empty, though the file may have their keys.
      where: name of the file, for messages.

    Raises:
      UserError: a key is left over, a slot is unfilled or of another shape or type, or the model would compute
        other results with these weights than the publisher's.
    """
    if content.names == "cnnjax":
        _check_own(content, model, where)
        return _checked(content, needed, optional, {p: Filling("/".join(p)) for p in needed.slots}, "", model, where)
    kind = "keras" if content.names == "keras" else "torch"
    known = {name: x for name, x in layouts.for_model(model).items() if name.startswith("keras") == (kind == "keras")}
    if not known:
        have = ", ".join(layouts.for_model(model)) or "none"
        raise UserError(
            f"{where}: a {content.kind} with {kind}'s names, which {type(model).__name__} has no rules for "
            f"(it knows the layouts: {have})"
        )
    used = {name: _keys_used(content.tensors, layout, kind, needed) for name, layout in known.items()}
    best = max(used, key=used.__getitem__)
    layout = known[best]
    # Where the layout knows few of the keys, the file is of another family, and the lists below say more.
    if 2 * used[best] > min(len(content.tensors), len(needed.slots)) and (
        unlike := {name: value for name, value in layout.fields.items() if getattr(model, name) != value}
    ):
        want = ", ".join(f"{name}={value!r}" for name, value in unlike.items())
        have = ", ".join(f"{name}={getattr(model, name)!r}" for name in unlike)
        raise UserError(f"{where}: {best}'s weights want a {type(model).__name__} with {want}, this one has {have}")
    try:
        plan = _plan(content.tensors, layout, kind, needed)
    except NoRuleError as error:
        raise UserError(
            f"{where}: {best}'s weights have no {error} of this {type(model).__name__}: it is another model's file"
        ) from error
    return _checked(content, needed, optional, plan, layout.unused, model, where)


# Fields of training, storage and the size of the head, on which a model's results with its weights do not depend.
FREE = ("num_classes", "dtype", "remat", "dropout", "momentum", "zero_init", "parent", "name")


def fields(model: linen.Module) -> dict[str, Any]:
    """Fields on which the results of a model with its weights depend, in the types that JSON gives back."""
    plain = (bool, int, float, str, tuple, list, type(None))
    names = [f.name for f in dataclasses.fields(model) if f.name not in FREE]
    return json.loads(json.dumps({name: x for name in names if isinstance(x := getattr(model, name), plain)}))


def _check_own(content: Content, model: linen.Module, where: str) -> None:
    """Raises UserError if weights that cnnjax saved fit this model but are those of one that computes other results."""
    if "variant" in content.about:
        saved = _sibling(model, content.about["variant"])
        if saved is None:
            return
        written, name = fields(saved), type(saved).__name__
    elif "fields" in content.about:
        try:
            written, name = dict(json.loads(content.about["fields"])), content.about.get("model", "")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where} is damaged, its header describes no model: fetch or save it again") from error
    else:
        return
    mine = fields(model)
    unlike = {key for key in written.keys() & mine.keys() if written[key] != mine[key]}
    if name == type(model).__name__ and unlike:
        want, have = (", ".join(f"{key}={of[key]!r}" for key in sorted(unlike)) for of in (written, mine))
        raise UserError(f"{where}: these are weights of a {name} with {want}, this one has {have}")


def _sibling(model: linen.Module, variant: str) -> linen.Module | None:
    """The variant of this name, if the module that defines the class of ``model`` has it: others have other classes."""
    variants = getattr(inspect.getmodule(type(model)), "VARIANTS", {})
    return variants[variant]() if variant in variants else None


def _keys_used(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure) -> int:
    """The number of the file's keys that this layout would use."""
    used = 0
    for path in needed.slots:
        with contextlib.suppress(NoRuleError):  # a module that this publisher's models do not have
            used += target(layout, kind, path) in tensors
    return used


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
    if kind == "torch":
        return f"{name}.{TORCH.get(leaf, leaf)}"
    layer, _, weight = name.partition(":")
    if weight and leaf == "kernel":
        return f"{layer}/{weight}"
    is_norm = path[-2].startswith("norm")
    return f"{layer}/{'beta' if leaf == 'bias' and is_norm else KERAS.get(leaf, leaf)}"


def _plan(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure) -> dict[Place, Filling]:
    """Fillings for all slots by a publisher's layout; their keys may be missing in the file."""
    plan = {}
    for path, slot in needed.slots.items():
        key, leaf = target(layout, kind, path), path[-1]
        if key not in tensors and leaf in layout.absent:
            plan[path] = Filling(None, constant=layout.absent[leaf])
            continue
        arrange = functools.partial(_arranged, kind == "torch", layout.flat.get("/".join(path[1:-1])), slot.shape)
        minus, plus = None, 0.0
        if leaf == "mean":
            minus = _bias_before(tensors, layout, kind, needed, path)
        if leaf == "var" and layout.epsilon is not None:
            plus = layout.epsilon - needed.epsilons[path[1:-1]]
        plan[path] = Filling(key, arrange if leaf == "kernel" else lambda x: x, minus=minus, plus=plus)
    return plan


def _bias_before(
    tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure, path: Place
) -> str | None:
    """The key of the bias of the convolution before a BatchNorm, where only the file has one: it shifts the mean."""
    conv = ("params", *path[1:-2], "conv", "bias")
    if path[-2] != "norm" or conv in needed.slots or (*conv[:-1], "kernel") not in needed.slots:
        return None
    key = target(layout, kind, conv)
    return key if key in tensors else None


def _arranged(torch: bool, flat: tuple[int, int, int] | None, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """The file's kernel as a view in our order of axes: HWIO, or [in, out] for a dense layer."""
    if torch and x.ndim == 2 and flat is not None and x.shape[1] == np.prod(flat):
        x = x.reshape(len(x), *flat).transpose(2, 3, 1, 0).reshape(x.shape[::-1])
    elif torch:
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if x.ndim == 4 and len(shape) == 2 and x.shape[:2] == (1, 1):  # a dense layer, in the file a convolution
        return x[0, 0]
    if not torch and x.ndim == 4 and len(shape) == 4 and x.shape[3] == shape[2] == 1 and x.shape[2] == shape[3]:
        return x.swapaxes(2, 3)  # depthwise: in the file [h, w, c, 1], here [h, w, 1, c]
    return x


def _checked(
    content: Content,
    needed: Structure,
    optional: frozenset[Place],
    plan: dict[Place, Filling],
    unused: str,
    model: linen.Module,
    where: str,
) -> dict[Place, Filling]:
    """``plan`` without the optional slots; UserError unless it uses every key once and all shapes and types fit."""
    tensors = content.tensors
    used = [key for filling in plan.values() for key in (filling.key, filling.minus) if key is not None]
    unfilled = [
        f"{'/'.join(path)} {list(needed.slots[path].shape)} (their {filling.key})"
        for path, filling in plan.items()
        if filling.key is not None and filling.key not in tensors and path not in optional
    ]
    left = [
        f"{key} {list(tensors[key].shape)}"
        for key in tensors.keys() - set(used)
        if not (unused and re.match(unused, key))
    ]
    kept = {path: filling for path, filling in plan.items() if path not in optional}
    wrong = [text for path, filling in kept.items() if (text := _misfit(tensors, needed.slots[path], path, filling))]
    parts = (
        ("in the model, not in the file", unfilled),
        ("in the file, not in the model", sorted(left)),
        ("unlike", wrong),
    )
    if any(lines for _, lines in parts):
        lists = "".join(_listed(title, lines) for title, lines in parts if lines)
        hint = _hint(model, wrong, unfilled, left)
        raise UserError(f"{where}: this {content.kind} does not fit {type(model).__name__}{hint}{lists}")
    return kept


_DENSE_INPUT = re.compile(r"[\w/]+/kernel: \[\d+, (\d+)\], in the file \S+ (\[\d+, \1\]|\[\1, \d+\])$")
_NUMBERED = re.compile(r"(conv2d|separable_conv2d|batch_normalization)(_\d+)?/")


def _hint(model: linen.Module, wrong: Sequence[str], unfilled: Sequence[str], left: Sequence[str]) -> str:
    """The likely cause and its cure, where the lists of an error show one."""
    if unfilled and left and all(_NUMBERED.match(line) for line in left):
        return (
            "; its layers are not numbered from the start: save it from a model made after keras.utils.clear_session()"
        )
    if wrong and not unfilled and not left and all(_DENSE_INPUT.match(line) for line in wrong):
        return ", whose dense layers depend on the size of images: give its image_size="
    if wrong and not unfilled and not left and all("/head" in line for line in wrong):
        return f' with num_classes={getattr(model, "num_classes", None)}; head="new" starts a new head'
    return ""


def _listed(title: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in [*lines[:SHOWN], *more])


def _misfit(tensors: Mapping[str, Tensor], slot: Slot, path: Place, filling: Filling) -> str | None:
    """A line for the error, if an array has another shape or type than the slot that it would fill."""
    for key, arrange in ((filling.key, filling.arrange), (filling.minus, lambda x: x)):
        if key is None or key not in tensors:
            continue
        tensor = tensors[key]
        # An array that takes no memory shows what becomes of the shape.
        shape = arrange(np.broadcast_to(np.zeros((), np.uint8), tensor.shape)).shape
        if shape != slot.shape:
            return f"{'/'.join(path)}: {list(slot.shape)}, in the file {key} {list(tensor.shape)}"
        if not is_float(tensor.dtype):
            return f"{'/'.join(path)}: {slot.dtype}, in the file {key} {tensor.dtype}"
    return None


def is_float(dtype: np.dtype) -> bool:
    """True for real numbers: float16, bfloat16, float32, float64."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
