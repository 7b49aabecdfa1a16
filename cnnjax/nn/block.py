"""Blocks of nearly every architecture: convolution + BatchNorm + activation, squeeze-and-excitation, a head."""

import functools
from collections.abc import Callable

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from cnnjax.nn.activation import relu
from cnnjax.nn.conv import Conv, DepthwiseConv, he_normal
from cnnjax.nn.dense import Dense
from cnnjax.nn.norm import BatchNorm
from cnnjax.ops.pool import global_avg_pool
from cnnjax.ops.window import Ints, Padding
from cnnjax.types import Array

Activation = Callable[[jax.Array], jax.Array]
# He et al. 2015 with the fan-out, normal and not truncated, as torchvision starts most of its networks.
he_normal_fan_out = linen.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(linen.Module):
    """Convolution ``conv`` without bias, BatchNorm ``norm``, then ``activation`` (None: nothing).

    Called as ``layer(x, train)``: ``x [n, h, w, c]`` → ``[n, out_h, out_w, features]``. ``features=None`` is a
    depthwise convolution. The other attributes are those of ``Conv`` and ``BatchNorm``; ``momentum`` and ``epsilon``
    default to torch's.
    """

    features: int | None
    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "SAME"
    dilation: Ints = 1
    groups: int = 1
    use_bias: bool = False
    activation: Activation | None = relu
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal
    scale_init: Initializer = linen.initializers.ones_init()

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        layer = DepthwiseConv if self.features is None else functools.partial(Conv, self.features, groups=self.groups)
        y = layer(
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        norm = BatchNorm(
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_scale=self.use_scale,
            scale_init=self.scale_init,
            name="norm",
        )
        y = norm(y, use_running_average=not train)
        return y if self.activation is None else self.activation(y)


class SqueezeExcite(linen.Module):
    """Squeeze-and-excitation: scales each channel by a factor that depends on the averages of all channels.

    Global average, dense layer ``reduce`` to c / ``reduction`` values (at least one) with ReLU, dense layer ``expand``
    to c factors with sigmoid, by which the channels are multiplied. ``x [n, h, w, c]`` → ``[n, h, w, c]``. Source: Hu
    et al. 2018, sec. 3; Fig. 14-22 of the chapter.
    """

    reduction: int = 16
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        chex.assert_rank(x, 4)
        dense = functools.partial(linen.Dense, dtype=self.dtype, kernel_init=he_normal)
        squeezed = relu(dense(max(x.shape[-1] // self.reduction, 1), name="reduce")(global_avg_pool(x)))
        gates = linen.sigmoid(dense(x.shape[-1], name="expand")(squeezed))
        return x * gates[:, None, None, :]


class Head(linen.Module):
    """Dropout, then a dense layer ``dense`` that gives float32 logits: ``x [n, c]`` → ``[n, num_classes]``.

    A map ``x [n, h, w, c]`` gives logits at each position, by a 1×1 convolution.
    """

    num_classes: int
    dropout: float = 0.0
    kernel_init: Initializer = linen.initializers.normal(0.01)

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        x = linen.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, 1, dtype=jnp.float32, kernel_init=self.kernel_init, name="dense")(x)


def check_images(images: Array, smallest: int) -> None:
    """Raises ValueError unless ``images`` are ``[n, h, w, c]`` with h, w ≥ ``smallest`` pixels."""
    if images.ndim != 4 or min(images.shape[1:3]) < smallest:
        raise ValueError(
            f"expected images [n, h, w, c] of at least {smallest} by {smallest} pixels, got shape {tuple(images.shape)}"
        )


def check_padding(padding: Padding) -> None:
    """Raises ValueError unless ``padding``, of 3×3 windows, is ``"SAME"`` (as Keras) or 1 (as torch)."""
    if padding not in ("SAME", 1):
        raise ValueError(f'expected padding "SAME" (as Keras) or 1 (as torch), got {padding!r}')


def rematerialized(stage: type[linen.Module], remat: bool) -> type[linen.Module]:
    """Module class ``stage``; with ``remat`` the backward pass computes the activations within it again.

    Its instances are called as ``stage(x, train)``; the paths of the parameters are the same either way.
    """
    return linen.remat(stage, static_argnums=(2,)) if remat else stage


def ceil_padding(x: Array, window: int, strides: int, padding: int = 0) -> tuple[tuple[int, int], ...]:
    """Padding with which pooling of ``x [n, h, w, c]`` rounds sizes up, as Caffe's and torch's ``ceil_mode``.

    Args:
      x: feature map, of which only the shape counts.
      window, strides: of the pooling, in pixels.
      padding: pixels before each dimension; as many or more follow after it.

    Returns:
      (before, after) for height and width. A window that would begin in the padding after is left out.
    """
    chex.assert_rank(x, 4)
    pads = []
    for size in x.shape[1:3]:
        count = -(-(size + 2 * padding - window) // strides) + 1
        count -= (count - 1) * strides >= size + padding
        pads.append((padding, max((count - 1) * strides + window - size - padding, 0)))
    return tuple(pads)
