"""Rectifiers whose result is kept, so that no operation that reads it computes it again.

XLA considers ``max(x, 0)`` so cheap that each operation that reads it may compute it again, together with the sum
before it: on a CPU the output of a ResNet block then adds up all blocks of its stage, forward and backward. XLA does
not duplicate a ``select`` of two arrays. The gradients here need only the result, which is kept anyway.
"""

import jax
import jax.numpy as jnp

from cnnjax.types import Array


@jax.custom_jvp
def relu(x: Array) -> jax.Array:
    """Rectified linear unit ``max(x, 0)`` (Nair & Hinton 2010); its gradient at 0 is 0, NaN stays NaN."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[jax.Array, jax.Array]:
    y = relu(primals[0])
    return y, jnp.where(y > 0, tangents[0], jnp.zeros_like(tangents[0]))


@jax.custom_jvp
def relu6(x: Array) -> jax.Array:
    """Rectified linear unit up to 6, ``min(max(x, 0), 6)``; its gradient at 0 and at 6 is 0.

    Source: MobileNetV2, Sandler et al. 2018, sec. 3.
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), jnp.where(x >= 6, jnp.full_like(x, 6), x))


@relu6.defjvp
def _relu6_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[jax.Array, jax.Array]:
    y = relu6(primals[0])
    return y, jnp.where((y > 0) & (y < 6), tangents[0], jnp.zeros_like(tangents[0]))


def leaky_relu(x: Array, slope: float = 0.1) -> jax.Array:
    """Leaky rectified linear unit: x above 0, ``slope`` · x below (Maas et al. 2013; 0.1 as in Darknet)."""
    return jnp.where(x > 0, x, slope * x)
