"""Normalization: over the batch (Ioffe & Szegedy 2015) and over neighboring channels (AlexNet 2012)."""

import functools

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from cnnjax.ops.reduce import broadcast_channels, channel_sum
from cnnjax.types import Array


class BatchNorm(linen.Module):
    """Batch normalization over all axes but the last (Ioffe & Szegedy 2015, Algorithm 1).

    ``y = (x − mean) / sqrt(var + epsilon) · scale + bias``. In training mean and variance are the batch's. The variance
    is biased (divided by the count), also in the running average, as in Keras and Flax (torch stores the unbiased one).
    Both are computed in float32 or better for any type of x. Under ``jit`` with a batch sharded over a mesh they
    are those of the whole batch, without an axis name.

    Parameters: ``scale [c]``, ``bias [c]``. Collection ``batch_stats``: ``mean [c]``, ``var [c]``, which each training
    call updates to ``momentum · old + (1 − momentum) · new`` (torch's momentum is one minus this one). ``dtype`` is the
    type returned (None: x's). The defaults are Keras'.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = linen.initializers.ones_init()
    bias_init: Initializer = linen.initializers.zeros_init()

    @linen.compact
    def __call__(self, x: Array, *, use_running_average: bool) -> jax.Array:
        """Normalizes ``x [..., c]`` with the running statistics, or with the batch's and updates the running ones."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else jnp.zeros(shape)
        wide = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
        if use_running_average:
            factor = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            y = (wide - running_mean.value) * factor + bias
        else:
            y, mean, var = batch_norm(wide, scale, bias, self.epsilon)
            if not self.is_initializing():
                running_mean.value = self._updated(running_mean.value, mean)
                running_var.value = self._updated(running_var.value, var)
        return y.astype(x.dtype if self.dtype is None else self.dtype)

    def _updated(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """Running average after one more batch."""
        return (self.momentum * old + (1 - self.momentum) * new).astype(old.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalization of ``x [..., c]`` by its own statistics: (y ``[..., c]``, mean ``[c]``, biased variance ``[c]``).

    Ioffe & Szegedy 2015, Algorithm 1. The variance takes a second pass: E[x²] − E[x]² loses all digits if the mean is
    much larger than the deviation.
    """
    chex.assert_shape([scale, bias], x.shape[-1:])
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    var = channel_sum(jnp.square(x - mean)) / count
    y = jnp.multiply(x - mean, jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y, mean, var


@batch_norm.defjvp
def _batch_norm_jvp(epsilon: float, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    # Factors per channel are combined before they multiply pixels. So the gradient needs only two sums over pixels, of
    # dy and of dy · (x − mean), gives dx as dy · a + (x − mean) · c + d, and keeps nothing but x.
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    y, mean, var = batch_norm(x, scale, bias, epsilon)
    count = x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + epsilon)
    centered = x - mean
    dmean = channel_sum(dx) / count
    dvar = channel_sum(centered * dx) * (2 / count)
    by_dx = inverse * scale
    by_centered = inverse * dscale - inverse**3 * scale * dvar / 2
    constant = dbias - by_dx * dmean
    dy = dx * by_dx + centered * broadcast_channels(by_centered, x.shape) + broadcast_channels(constant, x.shape)
    return (y, mean, var), (dy, dmean, dvar)


def local_response_norm(
    x: Array, radius: int = 2, k: float = 1.0, alpha: float = 2e-5, beta: float = 0.75, divide: bool = False
) -> jax.Array:
    """Local response normalization, the chapter's equation 14-2 (Krizhevsky et al. 2012, sec. 3.3).

    ``b_i = a_i · (k + alpha · Σ_j a_j²)^(−beta)``, j from ``i − radius`` to ``i + radius``, within the depth.

    There are two conventions of alpha. With ``divide=False`` it multiplies the sum: the chapter (radius 2, k 1, alpha
    2e-5, beta 0.75: the defaults), the 2012 paper (n = 5 so radius 2, k 2, alpha 1e-4, beta 0.75) and
    ``tf.nn.local_response_normalization``. With ``divide=True`` it is divided by the window n = 2·radius + 1, at the
    borders too: Caffe and ``torch.nn.LocalResponseNorm``. So Caffe's alpha 1e-4 with n = 5 is the chapter's 2e-5.

    Args:
      x: ``[..., c]``, float.
      radius: neighbors on either side, in channels.
      k: constant that keeps the divisor from zero.
      alpha: weight of the sum of squares.
      beta: exponent.
      divide: divide alpha by 2·radius + 1.

    Returns:
      ``[..., c]`` in x's type, computed in float32 or better.

    Raises:
      ValueError: the radius is negative.
    """
    if radius < 0:
        raise ValueError(f"expected a radius ≥ 0 channels, got {radius}")
    wide = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
    channels = x.shape[-1]
    padded = jnp.pad(jnp.square(wide), [(0, 0)] * (x.ndim - 1) + [(radius, radius)])
    window = 2 * radius + 1
    total = sum(padded[..., i : i + channels] for i in range(window))
    weight = alpha / window if divide else alpha
    return (wide * (k + weight * total) ** -beta).astype(x.dtype)


class LocalResponseNorm(linen.Module):
    """Local response normalization as a named layer without parameters; attributes as in ``local_response_norm``."""

    radius: int = 2
    k: float = 1.0
    alpha: float = 2e-5
    beta: float = 0.75
    divide: bool = False

    def __call__(self, x: Array) -> jax.Array:
        return local_response_norm(x, self.radius, self.k, self.alpha, self.beta, self.divide)
