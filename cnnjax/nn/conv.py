"""Convolution layers: parameters ``kernel`` and ``bias`` around the functions of ``ops.conv``.

Inputs are ``[n, *spatial, c]`` with 1, 2 or 3 spatial dimensions, outputs ``[n, *out, features]``. Attributes of all
layers: ``kernel_size``, ``strides`` and ``dilation`` are one int for all dimensions or one for each; ``padding`` is
``"SAME"``, ``"VALID"``, an int or a pair (before, after) for each dimension; ``dtype`` is the type computed in and
returned (None: the type to which input and parameters promote), ``param_dtype`` that of the parameters. Kernels start
as in He et al. 2015 (arXiv:1502.01852): truncated normal of variance 2 / fan-in, right for a ReLU after the layer;
biases start at zero. Shapes that do not fit raise the ValueError of ``ops.conv``.
"""

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from cnnjax.ops import conv as ops
from cnnjax.ops.reduce import broadcast_channels
from cnnjax.ops.window import Ints, Padding, check_rank, per_dim
from cnnjax.types import Array

he_normal = linen.initializers.he_normal()
he_normal_transposed = linen.initializers.he_normal(in_axis=-1, out_axis=-2)  # kernel [*window, out, in]
zeros = linen.initializers.zeros_init()


def _window(kernel_size: Ints, x: Array) -> tuple[int, ...]:
    """Spatial shape of a kernel for x."""
    return per_dim(kernel_size, check_rank(x), "kernel_size")


class Conv(linen.Module):
    """Convolution (equation 14-1 of the chapter).

    Parameters: ``kernel [*window, c / groups, features]``, ``bias [features]``.

    Raises:
      ValueError: ``groups`` does not divide both the channels and ``features``.
    """

    features: int
    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "SAME"
    dilation: Ints = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal
    bias_init: Initializer = zeros

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"expected groups that divide {channels} input and {self.features} output channels, got {self.groups}"
            )
        shape = (*_window(self.kernel_size, x), channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = ops.conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y if bias is None else y + broadcast_channels(bias, y.shape)


class DepthwiseConv(linen.Module):
    """Depthwise convolution: each channel with ``multiplier`` kernels of its own.

    Parameters: ``kernel [*window, 1, c * multiplier]``, ``bias [c * multiplier]``. Feature ``i * multiplier + j`` comes
    from channel i and its j-th kernel.
    """

    kernel_size: Ints
    multiplier: int = 1
    strides: Ints = 1
    padding: Padding = "SAME"
    dilation: Ints = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal
    bias_init: Initializer = zeros

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        features = x.shape[-1] * self.multiplier
        shape = (*_window(self.kernel_size, x), 1, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = ops.depthwise_conv(x, kernel, strides=self.strides, padding=self.padding, dilation=self.dilation)
        return y if bias is None else y + broadcast_channels(bias, y.shape)


class SeparableConv(linen.Module):
    """Depthwise, then 1×1 convolution with nothing in between, as in Xception (Chollet 2017, sec. 2).

    Parameters: ``depthwise/kernel [*window, 1, c * multiplier]``,
    ``pointwise/kernel [1, 1, c * multiplier, features]``, ``pointwise/bias [features]``.
    """

    features: int
    kernel_size: Ints
    multiplier: int = 1
    strides: Ints = 1
    padding: Padding = "SAME"
    dilation: Ints = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal
    bias_init: Initializer = zeros

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        x = DepthwiseConv(
            self.kernel_size,
            self.multiplier,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name="depthwise",
        )(x)
        return Conv(
            self.features,
            1,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="pointwise",
        )(x)


class ConvTranspose(linen.Module):
    """Transposed convolution, the adjoint of ``Conv`` with the same kernel (see ``ops.conv.conv_transpose``).

    Parameters: ``kernel [*window, features, c]`` as Keras' Conv2DTranspose, ``bias [features]``. The output is larger
    than the input by the factor ``strides``.
    """

    features: int
    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal_transposed
    bias_init: Initializer = zeros

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (*_window(self.kernel_size, x), self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = ops.conv_transpose(x, kernel, strides=self.strides, padding=self.padding)
        return y if bias is None else y + broadcast_channels(bias, y.shape)
