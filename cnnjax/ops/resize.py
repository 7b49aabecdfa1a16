"""Sizes of feature maps: nearest, bilinear and bicubic upsampling, unpooling, and cells moved into depth and back."""

from collections.abc import Sequence

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


def bilinear(x: Array, shape: Sequence[int]) -> jax.Array:
    """Bilinear interpolation to ``shape`` (height, width): ``[n, h, w, c]`` → ``[n, height, width, c]``, in x's type.

    Centers of pixels lie at halves and the border's pixels reach on outwards, as torch's ``interpolate`` with
    ``align_corners=False``; nothing is smoothed where the result is smaller.
    """
    chex.assert_rank(x, 4)
    n, _, _, channels = x.shape
    return jax.image.resize(x, (n, *shape, channels), "bilinear", antialias=False)


def bicubic(x: Array, shape: Sequence[int]) -> jax.Array:
    """Bicubic interpolation to ``shape`` (height, width): ``[n, h, w, c]`` → ``[n, height, width, c]``, in x's type.

    Keys' kernel with a = −0.5, of which at the border only what lies inside counts: enlarged images are Pillow's.
    Nothing is smoothed where the result is smaller.
    """
    chex.assert_rank(x, 4)
    n, _, _, channels = x.shape
    return jax.image.resize(x, (n, *shape, channels), "bicubic", antialias=False)


def unpool(x: Array, before: Array) -> jax.Array:
    """Values of a pooled map at the places of the maxima, zeros elsewhere: ``[n, h / f, w / f, c]`` → ``[n, h, w, c]``.

    Sources: Zeiler & Fergus 2014, sec. 2.1; SegNet (Badrinarayanan et al. 2017, sec. III). As torch's ``MaxUnpool2d``
    for windows that do not overlap; of equal maxima the first counts.

    Args:
      before: ``[n, h, w, c]``, the map that was pooled, by windows of f × f pixels.

    Raises:
      ValueError: the size of ``before`` is no multiple of that of ``x``.
    """
    chex.assert_rank((x, before), 4)
    n, rows, columns, channels = x.shape
    factor = before.shape[1] // rows
    if before.shape != (n, rows * factor, columns * factor, channels):
        raise ValueError(f"a map of {x.shape} is not pooled from one of {before.shape}")
    cells = jnp.asarray(before).reshape(n, rows, factor, columns, factor, channels).transpose(0, 1, 3, 5, 2, 4)
    first = cells.reshape(*cells.shape[:4], -1).argmax(-1)[..., None] == jnp.arange(factor**2)
    placed = jnp.where(first, jnp.asarray(x)[..., None], 0).reshape(cells.shape)
    return placed.transpose(0, 1, 4, 2, 5, 3).reshape(before.shape)


def fit(x: Array, shape: Sequence[int]) -> jax.Array:
    """Brings ``[n, h, w, c]`` to ``shape`` (height, width): cut at the end, or its last row and column repeated."""
    chex.assert_rank(x, 4)
    height, width = shape
    missing = [(0, max(0, wanted - size)) for wanted, size in zip(shape, x.shape[1:3], strict=True)]
    cut = jnp.asarray(x)[:, :height, :width]
    return cut if max(missing) == (0, 0) else jnp.pad(cut, ((0, 0), *missing, (0, 0)), mode="edge")


def pixel_shuffle(x: Array, factor: int) -> jax.Array:
    """Moves depth into cells of ``factor`` × ``factor`` pixels: ``[n, h, w, c · f²]`` → ``[n, h · f, w · f, c]``.

    Source: Shi et al. 2016 (ESPCN), eq. 4; channel ``c · f² + row · f + column``, as torch's ``PixelShuffle``.

    Raises:
      ValueError: the channels are no multiple of ``factor²``.
    """
    chex.assert_rank(x, 4)
    n, height, width, channels = x.shape
    if channels % factor**2:
        raise ValueError(f"expected channels that {factor**2} divides, got {channels}")
    x = jnp.asarray(x).reshape(n, height, width, channels // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, height * factor, width * factor, -1)


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
