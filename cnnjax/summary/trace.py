"""A model's program as one list of operations, each with its layer and its multiply-adds."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
from jax.extend import core

Shape = tuple[int, ...]

# Operations that call a program → the parameter that holds it.
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
# Operations that run a number of times that the program does not show.
_UNKNOWN = {"while", "cond"}
# Operations whose output is their input under another shape or name, and takes no memory.
_VIEWS = {"reshape", "squeeze", "expand_dims", "copy", "optimization_barrier", "sharding_constraint"}
# Plainer names than those of lax.
_PLAIN = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool", "convert_element_type": "cast"}


class Node(NamedTuple):
    """One operation on values that depend on the images.

    Attributes:
        op: name of the primitive.
        call: name of the function that it is part of, such as "relu", else of the operation.
        path: path of the module.
        inputs: numbers of the values that it reads.
        outputs: numbers of the values that it writes.
        macs: multiply-adds, of all passes together.
        times: passes, more than 1 within a scan.
        remat: number of the recomputed block that it is in.
    """

    op: str
    call: str
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    times: int
    remat: int | None


class _Place(NamedTuple):
    """Place of an operation; the attributes are those of ``Node``, ``call`` is "" outside named functions."""

    path: str = ""
    call: str = ""
    times: int = 1
    remat: int | None = None


class Trace:
    """Operations of a program that depend on its last ``inputs`` arguments; called programs are unfolded in place.

    Args:
        program: a traced function.
        inputs: number of arguments, the last ones.
        modules: path of a module → (its class, the shape of its output).
        train: True for a training program.

    Raises:
        ValueError: a loop or a branch depends on these arguments, and the program does not show how often it runs.
    """

    def __init__(
        self, program: core.ClosedJaxpr, inputs: int, modules: Mapping[str, tuple[str, Shape]], train: bool
    ) -> None:
        self.modules, self.train = modules, train
        self.nodes: list[Node] = []
        self.avals: list[Any] = []  # shape and dtype of each value that depends on the inputs
        self.joints: set[int] = set()  # values that recomputed blocks return
        self._blocks = 0
        invars = program.jaxpr.invars
        self.images = [self._value(var.aval) for var in invars[len(invars) - inputs :]]
        known = [None] * (len(invars) - inputs) + self.images
        outputs = self._run(program.jaxpr, known, _Place())
        self.outputs = {value for value in outputs if value is not None}
        self.nodes = _live(self.nodes, self.outputs)

    def _value(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _run(self, jaxpr: Any, known: Sequence[int | None], place: _Place) -> list[int | None]:
        """Adds the operations of ``jaxpr``, called at ``place``, to the nodes.

        Args:
            jaxpr: a program.
            known: the value of each argument; None where it does not depend on the inputs.
            place: where it is called.

        Returns:
            The value of each output, or None.
        """
        values: dict[Any, int | None] = dict(zip(jaxpr.invars, known, strict=True))
        for eqn in jaxpr.eqns:
            inputs = [None if isinstance(v, core.Literal) else values.get(v) for v in eqn.invars]
            if all(value is None for value in inputs):
                continue
            op = eqn.primitive.name
            scopes = re.findall("<([^>]*)>", str(eqn.source_info.name_stack))
            here = place._replace(path=scopes[-1], call="") if scopes else place
            if op in _UNKNOWN:
                where = here.path or "the model"
                raise ValueError(f"expected operations whose number of passes is known, got {op} in {where}")
            if op in _CALLS:
                outputs = self._call(eqn, inputs, here)
            elif op in _VIEWS or (op == "convert_element_type" and _widens(eqn)):
                outputs = inputs[: len(eqn.outvars)]
            else:
                outputs = self._operation(eqn, inputs, here)
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [None if isinstance(v, core.Literal) else values.get(v) for v in jaxpr.outvars]

    def _call(self, eqn: Any, inputs: Sequence[int | None], place: _Place) -> list[int | None]:
        """Adds the operations of the program that ``eqn`` calls, and returns its outputs."""
        op, params = eqn.primitive.name, eqn.params
        inside = place._replace(call=place.call or str(params.get("name", "")))
        if op in _REMAT and place.remat is None:
            self._blocks += 1
            inside = inside._replace(remat=self._blocks)
        body = getattr(params[_CALLS[op]], "jaxpr", params[_CALLS[op]])
        outputs = self._run(body, inputs, inside)
        if inside.remat != place.remat and self.train:
            self.joints.update(value for value in outputs if value is not None)
        return outputs

    def _operation(self, eqn: Any, inputs: list[int | None], place: _Place) -> list[int | None]:
        """Adds the node of ``eqn``, after those of its body if it is a scan, and returns its outputs."""
        op, params = eqn.primitive.name, eqn.params
        if op == "scan":
            body, first = params["jaxpr"].jaxpr, params["num_consts"]
            for i in range(first, first + params["num_carry"]):  # constant at most in the first pass
                inputs[i] = self._value(body.invars[i].aval) if inputs[i] is None else inputs[i]
            inputs = self._run(body, inputs, place._replace(times=place.times * params["length"]))
        read = tuple(value for value in inputs if value is not None)
        written = tuple(self._value(var.aval) for var in eqn.outvars)
        call, macs = place.call or _PLAIN.get(op, op), place.times * _macs_of(eqn)
        self.nodes.append(Node(op, call, place.path, read, written, macs, place.times, place.remat))
        return list(written)


def _widens(eqn: Any) -> bool:
    """True if a cast only adds digits: it is then computed where the result is read, and never stored."""
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
        if max(params["lhs_dilation"]) > 1:  # transposed: the zeros between the inputs do not count
            return math.prod(x) * math.prod(rest[0]) // channels // params["feature_group_count"]
        return out * math.prod(rest[0]) // features
    return 0


def _live(nodes: Sequence[Node], outputs: set[int]) -> list[Node]:
    """Nodes that the outputs depend on."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return live[::-1]


def trace_model(model: linen.Module, variables: Any, images: Any, key: Any, train: bool) -> Trace:
    """Trace of a model's program from images to logits (or the last endpoint) and, in training, auxiliary logits."""
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
        return [last, *(endpoints[name] for name in (model.aux_weights if train else ()))]

    return Trace(jax.make_jaxpr(outputs)(variables, key, images), 1, modules, train)
