"""Fit of a file's arrays to a model by a layout; heads of other names than the layout's."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import flax.linen as linen

from cnnjax.weights import names, rules
from cnnjax.weights.formats.content import Content, Tensor
from cnnjax.weights.layouts import Layout
from cnnjax.weights.names import Names
from cnnjax.weights.rules import Filling, Place, Structure

_GROUP = re.compile(r"\\{\d(?:\\?[+-]1)?\\}")  # of an escaped template
_SHOWN = 4  # names in a note


class Wanted(NamedTuple):
    """Slots that a model wants filled from a file.

    Attributes:
      model: the model.
      whole: its structure; of a model without a head that of the same model with one.
      optional: slots that stay empty, though the file may have their keys.
      new_head: whether the last layer starts anew.
      body: gives the slots of the model without its head.
    """

    model: linen.Module
    whole: Structure
    optional: frozenset[Place]
    new_head: bool
    body: Callable[[], frozenset[Place]]


class Fit(NamedTuple):
    """Fit of the arrays of a file to the slots by one layout.

    Attributes:
      plan: fillings of all slots.
      optional: slots that stay empty.
      unfilled: other slots, whose key the file lacks.
      left: keys that no slot takes.
      wrong: slots, not optional, whose array has another shape or type → a line about it.
    """

    plan: Mapping[Place, Filling]
    optional: frozenset[Place]
    unfilled: tuple[Place, ...]
    left: tuple[str, ...]
    wrong: Mapping[Place, str]

    @property
    def exact(self) -> bool:
        """True if every array is used once, every slot filled once, and all shapes and types agree."""
        return not (self.unfilled or self.left or self.wrong)


def fit(
    tensors: Mapping[str, Tensor],
    plan: Mapping[Place, Filling],
    structure: Structure,
    optional: frozenset[Place],
    unused: str = "",
) -> Fit:
    """The fit of ``plan``; ``unused`` is the layout's regular expression of keys that need not be used."""
    used = {key for filling in plan.values() for key in filling.keys}
    left = sorted(key for key in tensors.keys() - used if not (unused and re.match(unused, key)))
    kept = {path: filling for path, filling in plan.items() if path not in optional}
    unfilled = tuple(path for path, it in kept.items() if it.key is not None and it.key not in tensors)
    lines = {path: rules.misfit(tensors, structure.slots[path], path, it) for path, it in kept.items()}
    return Fit(plan, optional, unfilled, tuple(left), {path: line for path, line in lines.items() if line})


def named(
    tensors: Mapping[str, Tensor], layout: Layout, kind: str, structure: Structure, where: str
) -> tuple[Names, int]:
    """The arrays by the layout's keys, and how many of these there are. Errors are those of ``names.unprefixed``."""
    targets = {}
    for path in structure.slots:
        with contextlib.suppress(rules.NoRuleError):  # a module that this publisher's models do not have
            targets[rules.target(layout, kind, path)] = path
    if kind == "torch":
        found = names.unprefixed(tensors, targets, where)
    else:
        slots = {key: structure.slots[path] for key, path in targets.items() if path[-1] not in layout.absent}
        found = names.renumbered(tensors, slots)
    return found, len(targets.keys() & found.tensors.keys())


def module(key: str, kind: str) -> str:
    """The module or layer of a key."""
    return key.rpartition("/" if kind == "keras" else ".")[0]


def with_head(content: Content, wanted: Wanted, found: Fit, layout: Layout, kind: str) -> tuple[Fit, tuple[str, ...]]:
    """The fit with a head of another name than the layout's taken or left out, and what there is to say about it."""
    notes = list(_preparation(content))
    ready = [key for key in found.left if _prepares(key, content.tensors)]
    found = found._replace(left=tuple(key for key in found.left if key not in ready))
    if wanted.new_head and found.unfilled:
        found = _with_new_neck(wanted, found)
        notes += [f"it lacks {_shown(_ours(found.optional - wanted.optional))}, which start anew with the head"] * (
            found.optional != wanted.optional
        )
    left = {module(key, kind) for key in found.left}
    if found.left and wanted.optional and not found.unfilled and not found.wrong:
        if not any(of_body(key, layout, kind, wanted, found) for key in found.left):
            notes.append(f"left out: {_shown(left)}")
            found = found._replace(left=())
    elif (head := own_head(content, found, kind)) and (adopted := _adopted(content, wanted, found, head)):
        notes.append(f"the head is its {module(head[0], kind)}")
        found = adopted
    return found, tuple(notes)


def own_head(content: Content, found: Fit, kind: str) -> tuple[str, str] | None:
    """Keys of kernel and bias of the dense layer that is all that no slot takes; None if there is no such layer."""
    kernel, bias = ("kernel", "bias") if kind == "keras" else ("weight", "bias")
    by_module = defaultdict(set)
    for key in found.left:
        by_module[module(key, kind)].add(key[len(module(key, kind)) + 1 :])
    if len(by_module) != 1:
        return None
    (name, leaves), between = next(iter(by_module.items())), "/" if kind == "keras" else "."
    keys = f"{name}{between}{kernel}", f"{name}{between}{bias}"
    # The maximum of a feature map, not its average, goes into such a head.
    if any(layer.startswith("global_max_pooling") for layer in content.plain):
        return None
    return keys if leaves == {kernel, bias} and len(content.tensors[keys[0]].shape) == 2 else None


def _adopted(content: Content, wanted: Wanted, found: Fit, head: tuple[str, str]) -> Fit | None:
    """The fit with the dense layer ``head`` as the head; None unless all else fits, and it does."""
    places = {path[-1]: path for path in found.unfilled if path[1] == "head"}
    if found.wrong or len(found.unfilled) != 2 or places.keys() != {"kernel", "bias"}:
        return None
    plan = dict(found.plan)
    for leaf, key in zip(("kernel", "bias"), head, strict=True):
        path = places[leaf]
        plan[path] = plan[path]._replace(key=key)
        if rules.misfit(content.tensors, wanted.whole.slots[path], path, plan[path]):
            return None
    return found._replace(plan=plan, unfilled=(), left=())


def _with_new_neck(wanted: Wanted, found: Fit) -> Fit:
    """The fit with the dense layers before a new head new too, where a convolutional base has none of them."""
    neck = wanted.whole.slots.keys() - wanted.body() - found.optional
    if neck != set(found.unfilled):
        return found
    return found._replace(optional=found.optional | neck, unfilled=())


def of_body(key: str, layout: Layout, kind: str, wanted: Wanted, found: Fit) -> bool:
    """True for a key that is named like a part of the network before the head, or lies inside a used one of those."""
    body = wanted.body()
    modules = {"/".join(path[1:-1]) for path in wanted.whole.slots if path not in body}
    rows = [theirs for ours, theirs in layout.keys if not any(re.fullmatch(ours, each) for each in modules)]
    if knows(rows).fullmatch(module(key, kind)):
        return True
    used = (filling.key for path, filling in found.plan.items() if path in body)
    return kind == "torch" and key.partition(".")[0] in {each.partition(".")[0] for each in used if each}


def knows(templates: Collection[str]) -> re.Pattern[str]:
    """Pattern of a publisher's names of modules, for any numbers in the groups of the layout's templates."""
    return re.compile("|".join(_GROUP.sub(r"\\w+", re.escape(each.partition(":")[0])) for each in templates) or "(?!)")


def _preparation(content: Content) -> list[str]:
    """A note about layers that prepare images, which are not among the weights."""
    layers = [each for each in content.plain if re.fullmatch(r"rescaling(_\d+)?", each)]
    layers += sorted({key.partition("/")[0] for key in content.tensors if _prepares(key, content.tensors)})
    return [f"its {', '.join(layers)} stays out: give images prepared as it does"] if layers else []


def _prepares(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """True for an array of Keras' Normalization: mean, variance, count."""
    layer, _, weight = key.partition("/")
    if weight in ("mean", "variance", "count"):
        return f"{layer}/count" in tensors
    last = tensors.get(f"{layer}/2")
    return weight in ("0", "1", "2") and last is not None and last.shape == () and f"{layer}/3" not in tensors


def _ours(paths: Collection[Place]) -> set[str]:
    return {"/".join(path[1:-1]) for path in paths}


def _shown(modules: Collection[str]) -> str:
    more = [f"{len(modules) - _SHOWN} more"] if len(modules) > _SHOWN else []
    return ", ".join([*sorted(modules)[:_SHOWN], *more])
