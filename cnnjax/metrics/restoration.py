"""Metrics of restored images, such as super-resolution's: PSNR and SSIM, usually of the luminance.

Images are float ``[h, w]`` on a scale of ``peak``; ``jax.vmap`` makes the functions for a batch.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array

WINDOW = 7  # pixels on each side of SSIM's window, as scikit-image's
K1, K2 = 0.01, 0.03  # of the constants that keep quotients from 0 / 0
_LUMINANCE = (65.481, 128.553, 24.966)  # of RGB in 0 … 1 for 16 … 235


def luminance(image: Array) -> jax.Array:
    """Luminance of RGB in 0 … 255, ``[..., 3]`` → ``[...]`` in 16 … 235, as MATLAB's ``rgb2ycbcr`` and the field.

    Source: ITU-R BT.601.
    """
    chex.assert_axis_dimension(image, -1, 3)
    return jnp.asarray(image, jnp.float32) @ jnp.array(_LUMINANCE, jnp.float32) / 255 + 16


def psnr(found: Array, true: Array, peak: float = 255.0, border: int = 0) -> jax.Array:
    """Peak signal-to-noise ratio in dB, ``10 log10(peak² / mean squared error)``; infinite for equal images.

    Args:
      border: pixels on each side that do not count; super-resolution leaves out as many as its factor.
    """
    chex.assert_rank(found, 2)
    chex.assert_equal_shape([found, true])
    error = _inner(found, border).astype(jnp.float32) - _inner(true, border).astype(jnp.float32)
    return 10 * jnp.log10(peak**2 / jnp.square(error).mean())


def ssim(found: Array, true: Array, peak: float = 255.0, border: int = 0) -> jax.Array:
    """Structural similarity, the mean over all windows of 7×7 pixels inside the image; 1 for equal images.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13, with equal weights in the window and the sample covariance,
    as scikit-image's ``structural_similarity``.
    """
    chex.assert_rank(found, 2)
    chex.assert_equal_shape([found, true])
    x, y = (_inner(each, border).astype(jnp.float32) for each in (found, true))
    # Differences from the mean of the image lose less in float32 than squares of values around 128.
    shift = y.mean()
    u, v = x - shift, y - shift
    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_u, mean_v = _mean(u), _mean(v)
    var_x, var_y = (sample * (_mean(each**2) - mean**2) for each, mean in ((u, mean_u), (v, mean_v)))
    covariance = sample * (_mean(u * v) - mean_u * mean_v)
    mean_x, mean_y = mean_u + shift, mean_v + shift
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def _inner(image: Array, border: int) -> jax.Array:
    height, width = image.shape
    if min(height, width) < 2 * border + WINDOW:
        raise ValueError(f"expected images of at least {2 * border + WINDOW} pixels on each side, got {image.shape}")
    return jnp.asarray(image)[border : height - border, border : width - border]


def _mean(x: jax.Array) -> jax.Array:
    """Means of all windows inside ``x``, ``[h − 6, w − 6]``."""
    row = np.full(WINDOW, 1 / WINDOW, np.float32)
    rows = jax.vmap(lambda line: jnp.convolve(line, row, "valid"))(x)
    return jax.vmap(lambda line: jnp.convolve(line, row, "valid"))(rows.T).T
