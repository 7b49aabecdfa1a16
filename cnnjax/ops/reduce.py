"""Sum over all axes but the channels', and its transpose, for normalization and biases."""

import chex
import jax
import jax.numpy as jnp

from cnnjax.ops.cpu import sum_primitives
from cnnjax.ops.cpu.dispatch import supports
from cnnjax.types import Array


def channel_sum(x: Array) -> jax.Array:
    """Sum over all axes but the last, ``[..., c]`` → ``[c]``, in x's type."""
    return sum_primitives.channel_sum(x.shape, x) if supports(x) else jnp.sum(x, range(x.ndim - 1))


def broadcast_channels(values: Array, shape: tuple[int, ...]) -> jax.Array:
    """One value per channel, repeated over all other axes: ``[c]`` → ``shape``, which ends in c.

    Its gradient is a ``channel_sum``.
    """
    chex.assert_shape(values, shape[-1:])
    if supports(values):
        return sum_primitives.channel_broadcast(tuple(shape), values)
    return jnp.broadcast_to(values, shape)
