"""A model's program as one list of operations, each with its layer and its multiply-adds."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
from jax.extend import core

Shape = tuple[int, ...]

# Calls, by what holds the program called: they are looked into. ``while`` and ``cond`` hide how often they run.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
_REMAT = {"checkpoint", "remat2"}
_UNKNOWN = {"while", "cond"}
# The same bytes under another shape or name.
_VIEWS = {"reshape", "squeeze", "expand_dims", "copy", "optimization_barrier", "sharding_constraint"}
# lax' names of what has a plainer one.
_PLAIN = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool", "convert_element_type": "cast"}


class Node(NamedTuple):
    """One operation on values (numbers of them), computed from images."""

    op: str
    call: str  # the named function that it is part of, else the operation
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    times: int
    remat: int | None  # which block that is computed anew


class Trace:
    """A program without its calls: the operations that depend on its last ``inputs`` arguments."""

    def __init__(
        self, program: core.ClosedJaxpr, inputs: int, modules: Mapping[str, tuple[str, Shape]], train: bool
    ) -> None:
        self.modules, self.train = modules, train
        self.nodes: list[Node] = []
        self.avals: list[Any] = []  # of the values that depend on the inputs
        self.joints: set[int] = set()  # the outputs of blocks that are computed anew
        self._blocks = 0
        invars = program.jaxpr.invars
        self.images = [self._value(var.aval) for var in invars[len(invars) - inputs :]]
        known = [None] * (len(invars) - inputs) + self.images
        outputs = self._run(program.jaxpr, known, "", "", 1, None)
        self.outputs = {value for value in outputs if value is not None}
        self.nodes = _live(self.nodes, self.outputs)

    def _value(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _run(
        self, jaxpr: Any, known: Sequence[int | None], path: str, call: str, times: int, remat: int | None
    ) -> list[int | None]:
        """Adds the operations of ``jaxpr``: ``known``, the values of its arguments → the values of its outputs."""
        values: dict[Any, int | None] = dict(zip(jaxpr.invars, known, strict=True))
        for eqn in jaxpr.eqns:
            inputs = [None if isinstance(v, core.Literal) else values.get(v) for v in eqn.invars]
            op, params = eqn.primitive.name, eqn.params
            scopes = re.findall("<([^>]*)>", str(eqn.source_info.name_stack))
            where, inside = (scopes[-1], "") if scopes else (path, call)
            if op in _UNKNOWN and any(value is not None for value in inputs):
                raise ValueError(
                    f"expected operations whose number of passes is known, got {op} in {where or 'the model'}"
                )
            if op in _CALLS:
                block = remat
                if op in _REMAT and remat is None:
                    block = self._blocks = self._blocks + 1
                body = getattr(params[_CALLS[op]], "jaxpr", params[_CALLS[op]])
                outputs = self._run(body, inputs, where, inside or str(params.get("name", "")), times, block)
                if block != remat and self.train:
                    self.joints.update(value for value in outputs if value is not None)
            elif all(value is None for value in inputs):
                continue
            elif op in _VIEWS or (op == "convert_element_type" and _widens(eqn)):
                outputs = inputs[: len(eqn.outvars)]
            else:
                if op == "scan":
                    body = params["jaxpr"].jaxpr
                    first = params["num_consts"]
                    for i in range(first, first + params["num_carry"]):  # constant at most in the first pass
                        inputs[i] = self._value(body.invars[i].aval) if inputs[i] is None else inputs[i]
                    inputs = self._run(body, inputs, where, inside, times * params["length"], remat)
                outputs = [self._value(var.aval) for var in eqn.outvars]
                count = times * _macs_of(eqn)
                ins = tuple(value for value in inputs if value is not None)
                outs = tuple(value for value in outputs if value is not None)
                self.nodes.append(Node(op, inside or _PLAIN.get(op, op), where, ins, outs, count, times, remat))
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [None if isinstance(v, core.Literal) else values.get(v) for v in jaxpr.outvars]


def _widens(eqn: Any) -> bool:
    """Whether a cast only adds digits: it is then done where the result is read, and never stored."""
    return eqn.invars[0].aval.dtype.itemsize <= eqn.outvars[0].aval.dtype.itemsize


def _macs_of(eqn: Any) -> int:
    """Multiply-adds of one operation."""
    op, params = eqn.primitive.name, eqn.params
    if op in ("conv", "conv_input_grad", "conv_kernel_grad"):
        g = params["geometry"]
        return math.prod(g.out) * math.prod(g.kernel[:-1])
    x, *rest = (var.aval.shape for var in eqn.invars)
    out = math.prod(eqn.outvars[0].aval.shape)
    if op == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return out * math.prod(x[axis] for axis in contracted)
    if op == "conv_general_dilated":
        features, channels = (rest[0][axis] for axis in params["dimension_numbers"].rhs_spec[:2])
        if max(params["lhs_dilation"]) > 1:  # transposed: each input meets the window once, zeros between do not count
            return math.prod(x) * math.prod(rest[0]) // channels // params["feature_group_count"]
        return out * math.prod(rest[0]) // features
    return 0


def _live(nodes: Sequence[Node], outputs: set[int]) -> list[Node]:
    """The nodes that the outputs depend on."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return live[::-1]


def of_model(model: linen.Module, variables: Any, images: Any, key: Any, train: bool) -> Trace:
    """The program that gives a model's logits, or its last endpoint, and in training auxiliary logits of images."""
    modules: dict[str, tuple[str, Shape]] = {}

    def scoped(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        with jax.named_scope(f"<{path}>"):
            result = call(*args, **kwargs)
        if context.method_name == "__call__":
            shapes = [leaf.shape for leaf in jax.tree.leaves(result) if hasattr(leaf, "shape")]
            modules[path] = type(context.module).__name__, shapes[0] if shapes else ()
        return result

    def outputs(variables: Any, key: Any, images: Any) -> list[Any]:
        with linen.intercept_methods(scoped):
            (logits, endpoints), _ = model.apply(
                variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats"]
            )
        last = list(endpoints.values())[-1] if logits is None else logits
        return [last, *(endpoints[name] for name in getattr(model, "aux_weights", {}) if name in endpoints)]

    return Trace(jax.make_jaxpr(outputs)(variables, key, images), 1, modules, train)
