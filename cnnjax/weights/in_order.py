"""Weights without names, Darknet's: they fill the convolutions of a model in the order in which it computes them."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from cnnjax.types import UserError
from cnnjax.weights import own
from cnnjax.weights.fitting import Wanted
from cnnjax.weights.formats.content import Content, Tensor
from cnnjax.weights.formats.darknet import FLOATS
from cnnjax.weights.rules import Filling, Place, Slot, Structure

_NORM = ("bias", "scale", "mean", "var")  # the order of the file
_COLLECTION = {"mean": "batch_stats", "var": "batch_stats"}


def match(content: Content, wanted: Wanted, where: str) -> tuple[Mapping[Place, Filling], Content]:
    """Fillings of all slots that are not optional, and the content with an array for each slot.

    A file without the weights of the optional slots, those of a head, fits too, and one with a head of other classes.

    Raises:
      UserError: the file has more or fewer numbers than the model.
    """
    slots = list(in_order(wanted.whole))
    floats = content.tensors[FLOATS].read()
    filled = slots if len(floats) == _count(slots) else [each for each in slots if each[0] not in wanted.optional]
    if len(floats) != _count(filled):
        left = len(floats) - _count(filled)
        if filled == slots or slots[: len(filled)] != filled or left < 0 or left % _for_a_class(slots[len(filled) :]):
            raise UserError(
                f"{where}: this {content.kind} does not fit {own.name(wanted.model)}: it has {len(floats):,} numbers, "
                f"the model takes {_count(slots):,}{_end(slots, len(floats))}"
            )
        content = content._replace(notes=(*content.notes, f"left out: its head, the last {left:,} numbers"))
    tensors, begin = {}, 0
    for path, slot in filled:
        end = begin + math.prod(slot.shape)
        tensors["/".join(path)] = _tensor(floats[begin:end], slot, path)
        begin = end
    plan = {path: Filling("/".join(path)) for path, _ in filled if path not in wanted.optional}
    return plan, content._replace(tensors=tensors)


def in_order(structure: Structure) -> Iterator[tuple[Place, Slot]]:
    """Slots in the order of Darknet's file: of each convolution BatchNorm's or the bias, then the kernel."""
    convs = [path for path in structure.calls if ("params", *path, "kernel") in structure.slots]
    norms = {path[:-1]: path for path in structure.calls if ("batch_stats", *path, "mean") in structure.slots}
    for conv in convs:
        norm = norms.get(conv[:-1]) if conv[-1] == "conv" else None
        leaves = [(norm, leaf) for leaf in _NORM] if norm else [(conv, "bias")]
        for module, leaf in (*leaves, (conv, "kernel")):
            path = (_COLLECTION.get(leaf, "params"), *module, leaf)
            yield path, structure.slots[path]


def _count(slots: list[tuple[Place, Slot]]) -> int:
    return sum(math.prod(slot.shape) for _, slot in slots)


def _for_a_class(head: list[tuple[Place, Slot]]) -> int:
    """Numbers that a head at the end of a file has for each class."""
    return _count(head) // head[-1][1].shape[-1]


def _end(slots: list[tuple[Place, Slot]], count: int) -> str:
    """The layer within which a short file ends."""
    for path, slot in slots:
        count -= math.prod(slot.shape)
        if count < 0:
            return f"; it ends within {'/'.join(path[1:-1])}"
    return ""


def _tensor(floats: np.ndarray, slot: Slot, path: Place) -> Tensor:
    if path[-1] != "kernel":
        return Tensor(slot.shape, floats.dtype, lambda: floats)
    height, width, channels, features = slot.shape
    return Tensor(
        slot.shape, floats.dtype, lambda: floats.reshape(features, channels, height, width).transpose(2, 3, 1, 0)
    )
