"""Inference with the scale of each BatchNorm multiplied into the kernel before it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import traverse_util

from cnnjax.nn.conv import Conv, DepthwiseConv
from cnnjax.nn.norm import BatchNorm
from cnnjax.types import PyTree

Path = tuple[str, ...]


def fold_batch_norm(model: linen.Module, variables: PyTree, image_shape: tuple[int, int, int] | None = None) -> PyTree:
    """Variables of the same structure that give the same inference with less to compute.

    Where the output of a convolution goes to a BatchNorm and nowhere else, the kernel takes the factor
    ``scale / sqrt(var + epsilon)``; of the normalization a shift remains, which XLA joins to the activation after it.
    Use them as the old ones: ``model.apply(folded, images, train=False)``. Training needs the old ones.

    Args:
        model: called as ``model.apply(variables, images, train=False)``.
        variables: ``params`` and ``batch_stats``; they are not changed.
        image_shape: ``(h, w, c)`` to trace the model with; the model's own ``image_shape`` if None.

    Returns:
        Variables with the structure, shapes and types of the old. What is not foldable is as it was.
    """
    shape = model.image_shape if image_shape is None else image_shape  # type: ignore[attr-defined]
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
    """Convolution → (the BatchNorm that alone takes its output, its epsilon)."""
    calls: Counter[Path] = Counter()
    sources: dict[int, Path] = {}
    found: dict[Path, tuple[Path, float]] = {}
    outputs: dict[Path, jax.Array] = {}

    def connect(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, (Conv, DepthwiseConv, BatchNorm)):
            return call(*args, **kwargs)
        calls[layer.path] += 1
        y = call(*args, **kwargs)
        if isinstance(layer, BatchNorm):
            if id(args[0]) in sources:
                found[sources[id(args[0])]] = (layer.path, layer.epsilon)
            return y
        outputs[layer.path] = y
        sources[id(y)] = layer.path
        return y

    _trace(model, variables, shape, connect)
    once = {conv: norm for conv, norm in found.items() if calls[conv] == calls[norm[0]] == 1}
    return {conv: norm for conv, norm in once.items() if not _used_elsewhere(model, variables, shape, conv, norm[0])}


def _trace(model: linen.Module, variables: PyTree, shape: tuple[int, ...], intercept: Callable) -> Any:
    def run(variables: PyTree, images: jax.Array) -> Any:
        with linen.intercept_methods(intercept):
            return model.apply(variables, images, train=False)

    return jax.make_jaxpr(run)(variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
