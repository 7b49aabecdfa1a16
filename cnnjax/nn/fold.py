"""Inference with the scale of each BatchNorm multiplied into the kernel before it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.extend.core import Jaxpr, Var

from cnnjax.nn.conv import Conv, DepthwiseConv
from cnnjax.nn.norm import BatchNorm
from cnnjax.types import PyTree

Path = tuple[str, ...]


def fold_batch_norm(model: linen.Module, variables: PyTree, image_shape: tuple[int, int, int] | None = None) -> PyTree:
    """Variables with which inference gives the same results and computes less.

    Where only a BatchNorm reads the output of a convolution, the kernel is multiplied by ``scale / sqrt(var +
    epsilon)`` and the normalization becomes a shift, which XLA fuses with the activation after it. The result takes the
    place of ``variables``: ``model.apply(folded, images, train=False)``. Training needs the original ones.

    Args:
      model: called as ``model.apply(variables, images, train=False)``.
      variables: ``params`` and ``batch_stats``; they are not changed.
      image_shape: ``(h, w, c)`` of the images with which the model is traced; None: the model's own ``image_shape``.

    Returns:
      Variables with the structure, shapes and types of ``variables``; layers that cannot be folded keep their values.
    """
    shape = model.image_shape if image_shape is None else image_shape
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    for conv, (norm, epsilon) in _pairs(model, variables, shape).items():
        mean, var = stats[*norm, "mean"], stats[*norm, "var"]
        factor = jax.lax.rsqrt(var + epsilon) * params.get((*norm, "scale"), 1.0)
        kernel, bias = params[*conv, "kernel"], params.get((*conv, "bias"), 0.0)
        shift = (bias - mean) * factor + params.get((*norm, "bias"), 0.0)
        new = {
            (*conv, "kernel"): (kernel * factor).astype(kernel.dtype),
            (*conv, "bias"): jnp.zeros_like(shift),
            (*norm, "scale"): jnp.ones_like(shift),
            (*norm, "bias"): jnp.zeros_like(shift),
        }
        params |= {path: value.astype(params[path].dtype) for path, value in new.items() if path in params}
        stats |= {(*norm, "mean"): -shift.astype(mean.dtype), (*norm, "var"): jnp.full_like(var, 1 - epsilon)}
    folded = {"params": traverse_util.unflatten_dict(params), "batch_stats": traverse_util.unflatten_dict(stats)}
    return {**variables, **{name: folded[name] for name in folded if name in variables}}


def _pairs(model: linen.Module, variables: PyTree, shape: tuple[int, ...]) -> dict[Path, tuple[Path, float]]:
    """Convolution → (the BatchNorm that alone reads its output, its epsilon), without layers called more than once."""
    calls: Counter[Path] = Counter()
    outputs: dict[Path, jax.Array] = {}
    found: dict[Path, tuple[Path, float]] = {}

    def connect(layer: linen.Module, call: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        calls[layer.path] += 1
        y = call()
        if isinstance(layer, BatchNorm):
            found.update({conv: (layer.path, layer.epsilon) for conv, output in outputs.items() if output is x})
        else:
            outputs[layer.path] = y
        return y

    _trace(model, variables, shape, connect, {})
    pairs = {conv: norm for conv, norm in found.items() if calls[conv] == calls[norm[0]] == 1}
    norms = {norm for norm, _ in pairs.values()}

    # The second trace takes each output as an argument and leaves the normalizations out: an operation that still
    # reads an output is something else, such as an endpoint or a shortcut.
    def cut(layer: linen.Module, call: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        if layer.path in norms:
            return jnp.zeros(x.shape, x.dtype)
        return marks.pop(layer.path) if layer.path in marks else call()

    marks: dict[Path, Any] = {conv: jax.ShapeDtypeStruct(outputs[conv].shape, outputs[conv].dtype) for conv in pairs}
    order = sorted(marks)
    jaxpr = _trace(model, variables, shape, cut, marks)
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, Var)} | set(jaxpr.outvars)
    alone = {
        conv for conv, var in zip(order, jaxpr.invars[len(jaxpr.invars) - len(order) :], strict=True) if var not in read
    }
    return {conv: norm for conv, norm in pairs.items() if conv in alone}


def _trace(
    model: linen.Module, variables: PyTree, shape: tuple[int, ...], around: Callable, marks: dict[Path, Any]
) -> Jaxpr:
    """Jaxpr of inference with ``around(layer, call, x)`` for each convolution and BatchNorm; ``marks`` come last."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, (Conv, DepthwiseConv, BatchNorm)):
            return around(context.module, lambda: call(*args, **kwargs), args[0])
        return call(*args, **kwargs)

    def run(variables: PyTree, images: jax.Array, values: list[jax.Array]) -> Any:
        marks.update(zip(sorted(marks), values, strict=True))
        with linen.intercept_methods(intercept):
            return model.apply(variables, images, train=False)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.make_jaxpr(run)(variables, images, [marks[path] for path in sorted(marks)]).jaxpr
