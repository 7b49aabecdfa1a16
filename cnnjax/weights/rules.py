"""Which array of a file fills which of a model's, and how: key rules, layouts, exact folds."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import numpy as np
from flax import traverse_util

from cnnjax import models
from cnnjax.nn.norm import BatchNorm
from cnnjax.types import Layout, UserError
from cnnjax.weights.files import Content, Tensor

Path = tuple[str, ...]  # ("params", "stage1", "block1", "conv1", "conv", "kernel")
SHOWN = 20  # keys in an error, of each kind
KERAS = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Slot(NamedTuple):
    """What a model has room for."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Structure(NamedTuple):
    """What a model needs: its slots, and the epsilon of each BatchNorm by the path of the module."""

    slots: dict[Path, Slot]
    epsilons: dict[Path, float]


class Filling(NamedTuple):
    """How a slot gets its value: ``arrange`` of the file's array ``key`` (None: ``constant`` everywhere), less its
    array ``minus``, plus the number ``plus``."""

    key: str | None
    arrange: Callable[[np.ndarray], np.ndarray] = lambda x: x
    constant: float = 0.0
    minus: str | None = None
    plus: float = 0.0


@functools.lru_cache(maxsize=8)
def structure(model: linen.Module, image_shape: tuple[int, int, int]) -> Structure:
    """What ``model`` needs for images of this shape, without computing."""
    epsilons: dict[Path, float] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            epsilons[context.module.path] = context.module.epsilon
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with linen.intercept_methods(record):
        # A function of its own: of one that JAX has traced before it would not call the modules again.
        images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        try:
            tree = jax.eval_shape(lambda *args: model.init(*args), keys, images)
        except ValueError as error:  # too small, above all
            raise UserError(f"{type(model).__name__} cannot take images of {image_shape}: {error}") from error
    flat = traverse_util.flatten_dict(tree)
    return Structure({path: Slot(x.shape, np.dtype(x.dtype)) for path, x in flat.items()}, epsilons)


def layouts(model: linen.Module) -> dict[str, Layout]:
    """The layouts of others' files that ``model`` knows: "keras", and torch's by who published them."""
    return getattr(model, "layouts", {})


def match(
    content: Content, model: linen.Module, needed: Structure, optional: frozenset[Path], where: str
) -> dict[Path, Filling]:
    """How to fill every slot of ``needed`` from ``content``, but for those that are ``optional``.

    Raises:
      UserError: a key is left over, a slot unfilled or of another shape or type, or the model computes something else.
    """
    if content.names == "cnnjax":
        _check_own(content, model, where)
        return _checked(content, needed, optional, {p: Filling("/".join(p)) for p in needed.slots}, "", model, where)
    kind = "keras" if content.names == "keras" else "torch"
    known = {name: x for name, x in layouts(model).items() if name.startswith("keras") == (kind == "keras")}
    if not known:
        have = ", ".join(layouts(model)) or "none"
        raise UserError(
            f"{where}: a {content.what} with {kind}'s names, which {type(model).__name__} has no rules for "
            f"(it knows the layouts: {have})"
        )
    hits = {name: _hits(content.tensors, layout, kind, needed) for name, layout in known.items()}
    best = max(hits, key=hits.__getitem__)
    layout = known[best]
    # Where few keys are known it is another family, of which the lists say more.
    if 2 * hits[best] > min(len(content.tensors), len(needed.slots)) and (
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


# Fields that say how a model is trained or kept, or how large its head is: with others it is the same function.
FREE = ("num_classes", "dtype", "remat", "dropout", "momentum", "zero_init", "parent", "name")


def fields(model: linen.Module) -> dict[str, Any]:
    """The fields that decide what a model computes with its weights, as JSON gives them back."""
    plain = (bool, int, float, str, tuple, list, type(None))
    names = [f.name for f in dataclasses.fields(model) if f.name not in FREE]
    return json.loads(json.dumps({name: x for name in names if isinstance(x := getattr(model, name), plain)}))


def _check_own(content: Content, model: linen.Module, where: str) -> None:
    """UserError if weights that we saved are another model's, though they fit."""
    if "variant" in content.about and content.about["variant"] in models.names():
        of = models.create(content.about["variant"])
        written, name = fields(of), type(of).__name__
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


def _hits(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure) -> int:
    """How many of the file's keys this layout would use."""
    hits = 0
    for path in needed.slots:
        with contextlib.suppress(NoRuleError):  # of a part that this publisher's models do not have
            hits += target(layout, kind, path) in tensors
    return hits


class NoRuleError(Exception):
    """A layout says nothing of a module."""


def translated(layout: Layout, module: str) -> str:
    """Their name of the module at our path; NoRuleError if none is about it."""
    for pattern, template in layout.keys:
        if found := re.fullmatch(pattern, module):
            numbered = re.compile(r"\{(\d)([+-]1)?\}")
            return numbered.sub(functools.partial(_group, found), template)
    raise NoRuleError(module)


def _group(found: re.Match[str], asked: re.Match[str]) -> str:
    group, change = found[int(asked[1])], asked[2]
    return group if change is None else str(int(group) + int(change))


def target(layout: Layout, kind: str, path: Path) -> str:
    """Their key of our slot."""
    name, leaf = translated(layout, "/".join(path[1:-1])), path[-1]
    if kind == "torch":
        return f"{name}.{TORCH.get(leaf, leaf)}"
    layer, _, weight = name.partition(":")
    if weight and leaf == "kernel":
        return f"{layer}/{weight}"
    is_norm = path[-2].startswith("norm")
    return f"{layer}/{'beta' if leaf == 'bias' and is_norm else KERAS.get(leaf, leaf)}"


def _plan(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure) -> dict[Path, Filling]:
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


def _bias_before(tensors: Mapping[str, Tensor], layout: Layout, kind: str, needed: Structure, path: Path) -> str | None:
    """The bias, where only they have one, of the convolution before a BatchNorm: it moves the mean and nothing else."""
    conv = ("params", *path[1:-2], "conv", "bias")
    if path[-2] != "norm" or conv in needed.slots or (*conv[:-1], "kernel") not in needed.slots:
        return None
    key = target(layout, kind, conv)
    return key if key in tensors else None


def _arranged(torch: bool, flat: tuple[int, int, int] | None, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """Their kernel as a view in our order: HWIO, ``[in, out]``."""
    if torch and x.ndim == 2 and flat is not None and x.shape[1] == np.prod(flat):
        x = x.reshape(len(x), *flat).transpose(2, 3, 1, 0).reshape(x.shape[::-1])
    elif torch:
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if x.ndim == 4 and len(shape) == 2 and x.shape[:2] == (1, 1):  # a dense layer that they make a convolution
        return x[0, 0]
    if not torch and x.ndim == 4 and len(shape) == 4 and x.shape[3] == shape[2] == 1 and x.shape[2] == shape[3]:
        return x.swapaxes(2, 3)  # depthwise: theirs [h, w, c, 1], ours [h, w, 1, c]
    return x


def _checked(
    content: Content,
    needed: Structure,
    optional: frozenset[Path],
    plan: dict[Path, Filling],
    unused: str,
    model: linen.Module,
    where: str,
) -> dict[Path, Filling]:
    """``plan`` without what is optional, if it uses every key once and fits."""
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
        raise UserError(f"{where}: this {content.what} does not fit {type(model).__name__}{hint}{lists}")
    return kept


_DENSE_INPUT = re.compile(r"[\w/]+/kernel: \[\d+, (\d+)\], in the file \S+ (\[\d+, \1\]|\[\1, \d+\])$")
_NUMBERED = re.compile(r"(conv2d|separable_conv2d|batch_normalization)(_\d+)?/")


def _hint(model: linen.Module, wrong: Sequence[str], unfilled: Sequence[str], left: Sequence[str]) -> str:
    if unfilled and left and all(_NUMBERED.match(line) for line in left):
        return (
            "; its layers are numbered from another start: save it from a model made after keras.utils.clear_session()"
        )
    if wrong and not unfilled and not left and all(_DENSE_INPUT.match(line) for line in wrong):
        return ", whose dense layers depend on the size of images: give its image_size="
    if wrong and not unfilled and not left and all("/head" in line for line in wrong):
        return f' with num_classes={getattr(model, "num_classes", None)}; head="new" starts a new head'
    return ""


def _listed(title: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in [*lines[:SHOWN], *more])


def _misfit(tensors: Mapping[str, Tensor], slot: Slot, path: Path, filling: Filling) -> str | None:
    """What is wrong with the shapes and types of what would fill the slot."""
    for key, arrange in ((filling.key, filling.arrange), (filling.minus, lambda x: x)):
        if key is None or key not in tensors:
            continue
        tensor = tensors[key]
        # An array without memory, to see what becomes of the shape.
        shape = arrange(np.broadcast_to(np.zeros((), np.uint8), tensor.shape)).shape
        if shape != slot.shape:
            return f"{'/'.join(path)}: {list(slot.shape)}, in the file {key} {list(tensor.shape)}"
        if not is_float(tensor.dtype):
            return f"{'/'.join(path)}: {slot.dtype}, in the file {key} {tensor.dtype}"
    return None


def is_float(dtype: np.dtype) -> bool:
    """Whether it holds real numbers: float16, bfloat16, float32, float64."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
