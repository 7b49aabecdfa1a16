"""Activations that a program stores, and their lifetimes; the docstring of ``summary`` describes the model."""

import collections
import dataclasses
import itertools
import math
import re
from typing import Any

from cnnjax.summary.trace import Trace

# Operations so cheap that each reader recomputes them.
_CHEAP = {"broadcast_in_dim", "slice", "split"}
# Operations that may end a chain: its values are then not stored, but their result is.
_REDUCE = re.compile("reduce_(?!window|precision).*|arg(max|min)|channel_sum")
# Operations whose result is stored, and so are the values that they read.
_HEAVY = re.compile(
    "conv.*(?<!element_type)|dot_general|max_pool.*|reduce_window.*|select_and_.*|cum.*|gather|scatter.*"
    "|dynamic_.*|sort|top_k|rev|fft|scan"
)


@dataclasses.dataclass
class Buffer:
    """Memory of one value, or of several values one after the other.

    Attributes:
        bytes: size.
        born: number of the node that writes it first; −1 for the input.
        last: number of the node that reads it last.
        temporary: only one chain reads it, and it is free afterwards.
        remat: number of the recomputed block that writes it, if only that block reads it.
    """

    bytes: int
    born: int
    last: int
    temporary: bool
    remat: int | None


def nbytes(aval: Any) -> int:
    """Size of an array, or of anything with a shape and a dtype, in bytes."""
    return math.prod(aval.shape) * aval.dtype.itemsize


def _stores(op: str) -> bool:
    """True if the operation's result has a buffer, independent of its readers."""
    return bool(_HEAVY.fullmatch(op) or _REDUCE.fullmatch(op))


def _readers(trace: Trace) -> dict[int, set[int]]:
    """Stored values, in order, with the nodes that read each, directly or through a chain."""
    readers: dict[int, set[int]] = collections.defaultdict(set)
    read_by_heavy: set[int] = set()
    stored = set(trace.images)
    for i, node in reversed(list(enumerate(trace.nodes))):
        together = set().union(*(readers[value] for value in node.outputs))
        heavy = bool(_HEAVY.fullmatch(node.op))
        if (
            heavy
            or _REDUCE.fullmatch(node.op)
            or not (trace.outputs | trace.joints | read_by_heavy).isdisjoint(node.outputs)
            or (len(together) > 1 and node.op not in _CHEAP)
        ):
            stored.update(node.outputs)
            together = {i}
        for value in node.inputs:
            readers[value] |= together
        if heavy:
            read_by_heavy.update(node.inputs)
    return {value: readers[value] for value in sorted(stored)}


def _buffers(trace: Trace) -> list[Buffer]:
    """Buffers of the stored values, in the order in which they are first written."""
    readers, nodes = _readers(trace), trace.nodes
    born = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    free: dict[int, list[Buffer]] = collections.defaultdict(list)  # node → buffers that are free after it
    buffers = []
    for value, by in readers.items():
        i, aval, is_output = born.get(value, -1), trace.avals[value], value in trace.outputs
        block = nodes[i].remat if i >= 0 else None
        size = nbytes(aval) * (nodes[i].times if i >= 0 and trace.train else 1)
        last = len(nodes) if is_output else max(by, default=i)
        temporary = i >= 0 and len(by) == 1 and not is_output and not _stores(nodes[last].op)
        inside = block if not is_output and all(nodes[j].remat == block for j in by) else None
        buffer = next((old for old in free[i] if old.bytes == size), None)
        if buffer is None:
            buffers.append(buffer := Buffer(size, i, last, temporary, inside))
        else:  # overwritten
            free[i].remove(buffer)
            buffer.last, buffer.temporary, buffer.remat = last, temporary, inside
        if temporary:
            free[last].append(buffer)
    return buffers


def peak(trace: Trace) -> int:
    """Largest sum of the sizes of buffers that are in use at one time, in bytes."""
    change = [0] * (len(trace.nodes) + 2)
    for buffer in _buffers(trace):
        change[buffer.born + 1] += buffer.bytes
        if buffer.last < len(trace.nodes):
            change[buffer.last + 2] -= buffer.bytes
    return max(itertools.accumulate(change))


def kept(trace: Trace) -> tuple[list[Buffer], int]:
    """Buffers that are kept for the backward pass, and the bytes of the largest recomputed block."""
    activations = [buffer for buffer in _buffers(trace) if buffer.born >= 0 and not buffer.temporary]
    blocks: dict[int, int] = collections.Counter()
    for buffer in activations:
        if buffer.remat is not None:
            blocks[buffer.remat] += buffer.bytes
    return [buffer for buffer in activations if buffer.remat is None], max(blocks.values(), default=0)
