"""Upsampling layers: transposed convolution that starts as bilinear interpolation, resize-convolution, sub-pixels.

Inputs are ``[n, h, w, c]``, outputs ``[n, h · factor, w · factor, features]``.
"""

from collections.abc import Sequence

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from cnnjax.nn.conv import Conv, he_normal
from cnnjax.ops import conv as ops
from cnnjax.ops import resize
from cnnjax.types import Array, Key


def bilinear_window(factor: int) -> np.ndarray:
    """Window ``[k, k]`` for a transposed convolution of stride f = ``factor`` to interpolate; k = 2f, or 2f − 1 if odd.

    Source: Long, Shelhamer & Darrell 2015 (FCN), sec. 3.3 and the authors' surgery.py.
    """
    size = 2 * factor - factor % 2
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    row = 1 - distance / factor
    return np.outer(row, row).astype(np.float32)


def bilinear_init(key: Key, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
    """Kernel ``[k, k, features, c]`` that interpolates each channel by itself; k as of ``bilinear_window``."""
    factor = (shape[0] + 1) // 2
    return jnp.asarray(bilinear_window(factor)[..., None, None] * np.eye(*shape[2:], dtype=np.float32), dtype)


class BilinearUp(linen.Module):
    """Transposed convolution of stride ``factor`` without bias that starts as bilinear interpolation.

    The border's pixels are repeated outwards, so that at first it equals ``ops.resize.bilinear`` everywhere.
    Parameter: ``kernel [k, k, features, c]``, k as of ``bilinear_window``. Source: FCN (see there), the chapter's
    Fig. 14-27.
    """

    features: int
    factor: int
    dtype: Dtype | None = None
    kernel_init: Initializer = bilinear_init

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        size = 2 * self.factor - self.factor % 2
        kernel = self.param("kernel", self.kernel_init, (size, size, self.features, x.shape[-1]), jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        beyond = (self.factor + size) // 2  # pixels of the result on each side that the repeated border stands for
        return ops.conv_transpose(x, kernel, strides=self.factor, padding=beyond)


class ResizeConv(linen.Module):
    """Interpolation, then a 3×3 convolution ``conv``: no checkered patterns.

    Source: Odena, Dumoulin & Olah 2016, "Deconvolution and Checkerboard Artifacts".
    """

    features: int
    factor: int = 2
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        x = resize.bilinear(x, (x.shape[1] * self.factor, x.shape[2] * self.factor))
        return Conv(self.features, 3, dtype=self.dtype, name="conv")(x)


class SubPixel(linen.Module):
    """3×3 convolution ``conv`` to ``factor²`` times the features, whose pixels are then put beside each other.

    The kernel starts the same for all pixels of a cell, as nearest interpolation would (Aitken et al. 2017, "ICNR").
    Source: Shi et al. 2016 (ESPCN).
    """

    features: int
    factor: int = 2
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        cells = self.factor**2

        def init(key: Key, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
            return jnp.repeat(self.kernel_init(key, (*shape[:-1], shape[-1] // cells), dtype), cells, axis=-1)

        x = Conv(self.features * cells, 3, dtype=self.dtype, kernel_init=init, name="conv")(x)
        return resize.pixel_shuffle(x, self.factor)
