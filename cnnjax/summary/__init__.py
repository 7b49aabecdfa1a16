"""What a network costs: parameters, multiply-adds and memory, in all and layer by layer.

Nothing is computed: the model is traced with shapes only, and every number follows from the operations of the trace.

**Multiply-adds** (MACs) are those of convolutions and matrix products, one for each output and each tap of the window,
taps over padding included, as papers and torchvision count; biases, normalization and pooling are left out.

**Memory** is a model of what a compiler must keep, in bytes. An activation has a buffer of its own if it is

- the output of a convolution, a product, a pooling, a reduction or of movement of data, or
- the end of a chain of other operations (normalization, activation, sum, concatenation, padding) that one of those
  consumes, or that more than one of them or of other chains reads. Within a chain nothing is stored.

What one chain alone reads is gone afterwards, overwritten if the sizes agree: convolution, bias and ReLU share a
buffer, branches end in their concatenation. BatchNorm in training reads its input twice: then they are two.

``infer_bytes`` is the variables and the largest sum of buffers alive at one time, the input's among them until its last
use. ``train_bytes`` is the input, the variables, and every buffer of a forward pass with ``train=True``, since the
backward pass reads them; of what ``remat`` computes anew only the largest block counts. Gradients, the optimizer's
state, a library's work space and dropout's masks come on top.

``train_bytes`` is within 1 % of what JAX's own derivative holds on to for networks of convolutions, BatchNorm and ReLU
(3 % above for Xception; ReLU's masks, a byte each, left out), and a third below where layers take many elementwise
steps (local response normalization, tanh), each of which JAX keeps and XLA may do again. On CPUs XLA's program of the
gradient takes 2 to 4 times as much: gradients of activations, and copies padded or transposed, come on top.
"""

import collections
import csv
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import traverse_util

from cnnjax.summary.memory import Buffer, kept, nbytes, peak
from cnnjax.summary.trace import Shape, Trace, of_model


class LayerCost(NamedTuple):
    """One line of the table: a layer with its own operations, or an operation between layers.

    ``name`` is the module's path as in the parameters ("" is the model itself), ``kind`` its class, or the operation's
    name where a module that holds others computes something itself. ``macs`` are those of inference (none for what only
    training runs), ``bytes`` what training keeps. A layer called twice is one line, with the shape of its last output.
    """

    name: str
    kind: str
    shape: Shape
    params: int
    macs: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one model for one batch: trainable numbers, multiply-adds of inference, bytes (see the module)."""

    shape: Shape
    params: int
    macs: int
    infer_bytes: int
    train_bytes: int
    layers: tuple[LayerCost, ...]


def cost(model: linen.Module, shape: Shape) -> Cost:
    """What ``model`` costs for images of ``shape``, all ``n`` of them together, in the model's ``dtype``.

    Args:
        model: ``apply(variables, images, train=...)`` gives ``(logits, endpoints)``. Logits None: the last endpoint
            is the output. Training also has the outputs named in ``model.aux_weights``.
        shape: ``(n, h, w, c)``.

    Raises:
        ValueError: the model runs a loop or a branch whose passes the trace does not tell.
    """
    images = jax.ShapeDtypeStruct(shape, getattr(model, "dtype", None) or jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(model.init, key, images)
    test, train = (of_model(model, variables, images, key, flag) for flag in (False, True))
    stored = sum(nbytes(x) for x in jax.tree.leaves(variables))
    activations, largest = kept(train)
    return Cost(
        shape=tuple(shape),
        params=sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("params", {}))),
        macs=sum(node.macs for node in test.nodes),
        infer_bytes=stored + peak(test),
        train_bytes=stored + nbytes(images) + sum(buffer.bytes for buffer in activations) + largest,
        layers=_layers(test, train, activations, variables.get("params", {})),
    )


def macs(f: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of ``f(*args)``, trees of arrays or of ``jax.ShapeDtypeStruct``; ValueError as ``cost``."""
    trace = Trace(jax.make_jaxpr(f)(*args), len(jax.tree.leaves(args)), {}, False)
    return sum(node.macs for node in trace.nodes)


def rows(result: Cost) -> list[dict[str, Any]]:
    """One row per layer, the sums last, for ``report.table`` and ``write_csv``."""
    layers = [layer._asdict() for layer in result.layers]
    total = {"name": "total", "kind": "", "shape": result.shape}
    total |= {column: sum(row[column] for row in layers) for column in ("params", "macs", "bytes")}
    return [{**row, "shape": "×".join(map(str, row["shape"]))} for row in (*layers, total)]


def to_csv(result: Cost, path: Path) -> None:
    """Writes the table of layers."""
    write_csv(rows(result), path)


def write_csv(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows (all with the keys of the first) to a temporary name, then renames."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    temporary.replace(path)


def _layers(test: Trace, train: Trace, activations: Sequence[Buffer], params: Any) -> tuple[LayerCost, ...]:
    """The table: what owns parameters or is a module without modules, and the operations that others do themselves."""
    counts: dict[str, int] = collections.Counter()
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        counts[path.rpartition("/")[0]] += math.prod(leaf.shape)
    stored = {buffer.born: buffer for buffer in activations}
    layers: dict[Any, LayerCost] = {}
    for trace in (train, test):
        for key, i in _places(trace, counts):
            node = trace.nodes[i]
            size = stored[i].bytes if trace.train and i in stored else 0
            count = 0 if trace.train else node.macs
            if size or count or key in counts:
                itself = node.call, trace.avals[node.outputs[0]].shape
                kind, shape = trace.modules.get(key, itself)
                old = layers.get(key, LayerCost(node.path, kind, shape, counts.get(key, 0), 0, 0))
                layers[key] = old._replace(shape=shape, macs=old.macs + count, bytes=old.bytes + size)
    return tuple(layers.values())


def _places(trace: Trace, owners: Mapping[str, int]) -> Iterator[tuple[Any, int]]:
    """Each node with its line of the table: its module's path or, in modules of modules, its number among its kind."""
    inner = {path.rpartition("/")[0] for path in trace.modules if path} - owners.keys()
    seen: dict[Any, int] = collections.Counter()
    for i, node in enumerate(trace.nodes):
        same = node[:3]
        seen[same] += 1
        yield (*same, seen[same]) if node.path in inner else node.path, i
