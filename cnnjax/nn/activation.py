"""Rectifiers whose result is kept, so that nothing behind them computes it anew.

To XLA ``max(x, 0)`` is so cheap that it may be computed again by each of its readers, together with the sum before it:
on a CPU the output of a ResNet block then sums up all blocks of its stage, in the forward and in the backward pass. A
``select`` of two arrays is not duplicated, and the gradient here needs no more than the result, which is there anyway.
"""

import jax
import jax.numpy as jnp

from cnnjax.types import Array


@jax.custom_jvp
def relu(x: Array) -> jax.Array:
    """``max(x, 0)``, a rectified linear unit (Nair & Hinton 2010); its gradient at 0 is 0, NaN stays NaN."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[jax.Array, jax.Array]:
    y = relu(primals[0])
    return y, jnp.where(y > 0, tangents[0], jnp.zeros_like(tangents[0]))


@jax.custom_jvp
def relu6(x: Array) -> jax.Array:
    """``min(max(x, 0), 6)`` (MobileNetV2, Sandler et al. 2018, sec. 3); its gradient at 0 and at 6 is 0."""
    return jnp.where(x <= 0, jnp.zeros_like(x), jnp.where(x >= 6, jnp.full_like(x, 6), x))


@relu6.defjvp
def _relu6_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[jax.Array, jax.Array]:
    y = relu6(primals[0])
    return y, jnp.where((y > 0) & (y < 6), tangents[0], jnp.zeros_like(tangents[0]))
