"""Primitives that are lax's own operations everywhere but on CPUs, where they take a form chosen by their shape.

Convolution, pooling and channel sums are JAX primitives here. The form is therefore chosen when a program is lowered
and its platform is known, and everything JAX does with lax's operations (forward mode, gradients of gradients, vmap,
remat, export) works with these. A table of ``Row`` for each primitive says which form suits which geometry, and why.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from cnnjax.types import Array

Form = Callable[..., jax.Array]


class Row(NamedTuple):
    """One line of a table: the first row whose ``suits`` holds gives the form."""

    suits: Callable[[Any], bool]
    form: Form
    why: str


def choose(table: Sequence[Row], geometry: Hashable, plain: Form) -> Form:
    """The form of the first row that suits the geometry; ``plain`` if none does."""
    return next((row.form for row in table if row.suits(geometry)), plain) if _enabled else plain


_enabled = True


@contextlib.contextmanager
def plain_everywhere() -> Iterator[None]:
    """Lowers lax's own operations on CPUs too, while in the block, to compare with; compiled programs do not change."""
    global _enabled
    _enabled = False
    try:
        yield
    finally:
        _enabled = True


def primitive(
    name: str,
    shape: Callable[[Any], tuple[int, ...]],
    plain: Form,
    table: Sequence[Row],
    fold: Callable[[Any, int], Any] | None = None,
    images: frozenset[int] = frozenset(),
) -> Primitive:
    """A primitive of arrays and a hashable geometry that is ``plain`` on all platforms but CPUs.

    Args:
        name: shown in jaxprs.
        shape: geometry → shape of the result, whose type is that of the first argument.
        plain: (geometry, *arrays) → result, by lax.
        table: the forms for CPUs.
        fold: (geometry, copies) → geometry of ``copies`` batches in one.
        images: positions of the arguments whose leading axis is the batch; the result's is then the batch, too. Where
            vmap maps exactly these, they are folded into one larger batch; else, and without ``fold``, ``plain`` is
            batched.
    """
    p = Primitive(name)

    def on_cpu(*arrays: jax.Array, geometry: Any) -> jax.Array:
        return choose(table, geometry, plain)(geometry, *arrays)

    def elsewhere(*arrays: jax.Array, geometry: Any) -> jax.Array:
        return plain(geometry, *arrays)

    def batched(arrays: Sequence[Array], axes: Sequence[int | None], geometry: Any) -> tuple[jax.Array, int]:
        if fold is None or {i for i, axis in enumerate(axes) if axis is not None} != images:
            return jax.vmap(functools.partial(plain, geometry), axes)(*arrays), 0
        front = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
        copies = front[min(images)].shape[0]
        merged = [x if axis is None else x.reshape(-1, *x.shape[2:]) for x, axis in zip(front, axes, strict=True)]
        y = p.bind(*merged, geometry=fold(geometry, copies))
        return y.reshape(copies, -1, *y.shape[1:]), 0

    p.def_impl(functools.partial(_eager, p))
    p.def_abstract_eval(lambda *avals, geometry: jax.core.ShapedArray(shape(geometry), avals[0].dtype))
    mlir.register_lowering(p, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(p, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    batching.primitive_batchers[p] = batched
    return p


@functools.partial(jax.jit, static_argnames=("primitive", "geometry"))
def _eager(primitive: Primitive, *arrays: jax.Array, geometry: Any) -> jax.Array:
    """Value of a primitive outside of jit, compiled."""
    return primitive.bind(*arrays, geometry=geometry)


def supports(*arrays: Array) -> bool:
    """True for arrays that the primitives take: float32 or float64, all sizes known, no Explicit or Manual mesh axes.

    lax computes all others: in bfloat16 sums of products lose digits, and under Explicit or Manual axes each form
    would need sharding rules of its own.
    """
    for x in arrays:
        mesh = jax.typeof(x).sharding.mesh
        if x.dtype not in (jnp.float32, jnp.float64) or not all(isinstance(d, int) for d in x.shape):
            return False
        if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
            return False
    return True
