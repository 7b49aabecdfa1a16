"""Dense layers, which on windows of a feature map are convolutions."""

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from cnnjax.ops import conv as ops
from cnnjax.ops.window import Ints, per_dim
from cnnjax.types import Array


class Dense(linen.Module):
    """Dense layer over vectors, over whole feature maps or, as a convolution, over each window of them.

    Vectors ``[n, c]`` → ``[n, features]`` with ``kernel [c, features]``, whatever the window. Feature maps
    ``[n, h, w, c]`` without a window are made vectors first, with ``kernel [h · w · c, features]``. With a window they
    give ``[n, h', w', features]``, ``h' = h − window + 1``, with ``kernel [*window, c, features]``: the same numbers in
    the same order where the window is as large as the map. ``bias [features]``. Source: Long et al. 2015, sec. 3.1.

    Attributes:
      window: height and width of the window, in positions; None: the whole map.
      dtype: type computed in and returned; None: the type to which input and parameters promote.

    Raises:
      ValueError: the window is larger than the map; from ``ops.conv``.
    """

    features: int
    window: Ints | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = linen.initializers.lecun_normal()
    bias_init: Initializer = linen.initializers.zeros_init()

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        size = () if self.window is None or x.ndim == 2 else per_dim(self.window, x.ndim - 2, "window")
        x = x if size else x.reshape(x.shape[0], -1)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return (ops.conv(x, kernel, padding="VALID") if size else x @ kernel) + bias
