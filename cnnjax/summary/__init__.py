"""Cost of a network: parameters, multiply-adds and memory, in total and layer by layer.

Nothing is computed: the model is traced with shapes only, and every number follows from the operations of the trace.

**Multiply-adds** (MACs) are those of convolutions and matrix products: one for each output and each tap of the window,
taps over padding included, as papers and torchvision count. Biases, normalization and pooling are left out.

**Memory** follows a simple model of what a compiler must store. A *heavy* operation (convolution, matrix product,
pooling, reduction, movement of data) writes its output to a buffer. Other operations (normalization, activation, sum,
concatenation, padding) form *chains*; only the end of a chain has a buffer, and it is the end if a heavy operation
reads it, or if more than one heavy operation or chain does. Within a chain nothing is stored.

A buffer that only one chain reads is free afterwards, and the chain's result overwrites it if the sizes agree: a
convolution, its bias and its ReLU share one buffer, and branches share the buffer of their concatenation. BatchNorm in
training reads its input twice, for the statistics and to normalize it, so that its output has a second buffer.

``infer_bytes`` is the size of the variables plus the largest sum of the buffers that are in use at one moment; the
input's is in use until its last reader has run. ``train_bytes`` is the size of the input, the variables and every
buffer of a forward pass with ``train=True``, since the backward pass reads them; of the blocks that ``remat``
recomputes only the largest counts. Gradients, the optimizer's state, a library's work space and dropout's masks come on
top.

``train_bytes`` is within 1 % of the memory that JAX's derivative keeps for networks of convolutions, BatchNorm and
ReLU (3 % above it for Xception; ReLU's masks, a byte per value, not counted). It is a third too low where layers take
many elementwise steps (local response normalization, tanh): JAX keeps each of them, XLA may recompute them. On CPUs
XLA's program of the gradient takes 2 to 4 times as much, for gradients of activations and padded or transposed copies.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import traverse_util

from cnnjax import atomic
from cnnjax.summary.memory import Buffer, kept, nbytes, peak
from cnnjax.summary.trace import Shape, Trace, trace_model


class LayerCost(NamedTuple):
    """Row of the table: a layer, or an operation between layers. A layer that is called twice is one row.

    Attributes:
        name: path of the module as in the parameters; "" is the model itself.
        kind: class of the module, or name of the operation where a module that holds others computes something itself.
        shape: shape of the output; of the last output if the layer is called more than once.
        params: number of trainable values.
        macs: multiply-adds of inference; 0 for a layer that only training runs.
        bytes: size of the activations that training keeps.
    """

    name: str
    kind: str
    shape: Shape
    params: int
    macs: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one model for one batch.

    Attributes:
        shape: shape of the batch, ``(n, h, w, c)``.
        params: number of trainable values.
        macs: multiply-adds of inference.
        infer_bytes: memory of inference, see the module's docstring.
        train_bytes: memory of training, see the module's docstring.
        layers: rows of the table.
    """

    shape: Shape
    params: int
    macs: int
    infer_bytes: int
    train_bytes: int
    layers: tuple[LayerCost, ...]


def cost(model: linen.Module, shape: Shape) -> Cost:
    """Cost of ``model`` for a batch of images in the model's ``dtype``.

    Args:
        model: ``apply(variables, images, train=...)`` gives ``(logits, endpoints)``. Where logits are None, the last
            endpoint is the output. In training the endpoints that ``model.aux_weights`` names are outputs too.
        shape: shape of the batch, ``(n, h, w, c)``.

    Raises:
        ValueError: the model contains a loop or a branch, and the trace does not show how often it runs.
    """
    images = jax.ShapeDtypeStruct(shape, getattr(model, "dtype", None) or jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(model.init, key, images)
    test, train = (trace_model(model, variables, images, key, flag) for flag in (False, True))
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
    """Multiply-adds of ``f(*args)``.

    Args:
        f: a function that JAX can trace.
        args: trees of arrays or of ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: as in ``cost``.
    """
    trace = Trace(jax.make_jaxpr(f)(*args), len(jax.tree.leaves(args)), {}, False)
    return sum(node.macs for node in trace.nodes)


def rows(result: Cost) -> list[dict[str, Any]]:
    """Rows for ``report.table`` and ``write_csv``: one per layer, and a last one with the totals."""
    layers = [layer._asdict() for layer in result.layers]
    total = {"name": "total", "kind": "", "shape": result.shape}
    total |= {column: sum(row[column] for row in layers) for column in ("params", "macs", "bytes")}
    return [{**row, "shape": "×".join(map(str, row["shape"]))} for row in (*layers, total)]


def to_csv(result: Cost, path: Path) -> None:
    """Writes the rows of a cost as CSV, all or nothing."""
    write_csv(rows(result), path)


def write_csv(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows, all with the keys of the first, as CSV, all or nothing."""
    atomic.write_csv(path, list(table[0]), [[row[name] for name in table[0]] for row in table])


def _layers(test: Trace, train: Trace, activations: Sequence[Buffer], params: Any) -> tuple[LayerCost, ...]:
    """Rows of the table: modules with parameters of their own or without submodules, and operations of others."""
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
    """(row, number of the node) of each node.

    The row is the path of the node's module; in a module that holds others it is the operation and its number among the
    operations of its name.
    """
    inner = {path.rpartition("/")[0] for path in trace.modules if path} - owners.keys()
    seen: dict[Any, int] = collections.Counter()
    for i, node in enumerate(trace.nodes):
        same = node[:3]
        seen[same] += 1
        yield (*same, seen[same]) if node.path in inner else node.path, i
