"""Pooling with parameters: LeNet-5's subsampling."""

import math
from collections.abc import Callable

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from cnnjax.ops.pool import avg_pool
from cnnjax.ops.window import Ints, check_rank, per_dim
from cnnjax.types import Array


class Subsample(linen.Module):
    """LeNet-5's trainable subsampling (LeCun et al. 1998, sec. II.B, layer S2).

    ``activation(scale · sum + bias)`` of each window, where windows do not overlap. The chapter takes the mean of the
    window in place of the sum, which gives the same layer with ``scale`` times the window's area.

    Parameters: ``scale [c]``, ``bias [c]``. Input ``[n, *spatial, c]``, output ``[n, *(spatial / window), c]``.

    Attributes:
      activation: function of arrays.
      window: in pixels.
      dtype: type computed in and returned; None: the type to which input and parameters promote.

    Raises:
      ValueError: the window does not fit; from ``ops.pool``.
    """

    activation: Callable[[jax.Array], jax.Array]
    window: Ints = 2
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = linen.initializers.ones_init()
    bias_init: Initializer = linen.initializers.zeros_init()

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        x, scale, bias = promote_dtype(x, scale, bias, dtype=self.dtype)
        area = math.prod(per_dim(self.window, check_rank(x), "window"))
        return self.activation(avg_pool(x, self.window) * area * scale + bias)
