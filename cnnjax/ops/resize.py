"""Sizes of feature maps: nearest upsampling, and cells moved into depth."""

import chex
import jax
import jax.numpy as jnp

from cnnjax.types import Array


def upsample_nearest(x: Array, factor: int) -> jax.Array:
    """Repeats each pixel ``factor`` times in both directions: ``[n, h, w, c]`` → ``[n, h · factor, w · factor, c]``."""
    chex.assert_rank(x, 4)
    n, height, width, channels = x.shape
    shape = (n, height, factor, width, factor, channels)
    return jnp.broadcast_to(jnp.asarray(x)[:, :, None, :, None], shape).reshape(n, height * factor, width * factor, -1)


def reorg(x: Array, stride: int) -> jax.Array:
    """Moves cells of ``stride`` × ``stride`` pixels into depth as Darknet's [reorg] does, YOLOv2's passthrough.

    Redmon & Farhadi 2017, sec. 2 "Fine-Grained Features": 26 × 26 × 512 becomes 13 × 13 × 2048. The paper's program
    reads the memory of ``[c, h, w]`` as if it were ``[c / stride², h · stride, w · stride]``; the published weights are
    trained with the order that results, which is not that of a plain space-to-depth.

    Args:
      x: ``[n, h, w, c]``; ``stride`` divides h and w, its square divides c.
      stride: pixels.

    Returns:
      ``[n, h / stride, w / stride, c · stride²]``.

    Raises:
      ValueError: the sizes are not multiples.
    """
    chex.assert_rank(x, 4)
    n, height, width, channels = x.shape
    if height % stride or width % stride or channels % stride**2:
        raise ValueError(f"expected h and w that {stride} divides and c that {stride**2} divides, got {x.shape}")
    depth = channels // stride**2
    x = jnp.moveaxis(jnp.asarray(x), -1, 1).reshape(n, depth, height, stride, width, stride)
    x = x.transpose(0, 3, 5, 1, 2, 4).reshape(n, channels * stride**2, height // stride, width // stride)
    return jnp.moveaxis(x, 1, -1)
