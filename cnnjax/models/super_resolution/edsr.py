"""EDSR (Lim, Son, Kim, Nah & Lee, "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017,
sec. 3, Fig. 3), fully convolutional.

    head       3×3, features
    body       blocks of 3×3, ReLU, 3×3, added to their input (no BatchNorm); 3×3; the head's output is added
    up         sub-pixel convolutions, factor 2 each
    tail       3×3 to the image's channels

The paper's baseline has 16 blocks of 64 features, 1,369,859 parameters at factor 2. Beside the paper, the result is
added to the image interpolated bicubically, with which the network starts: its last kernel starts at zero (VDSR, Kim et
al. 2016, sec. 3).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops import resize
from cnnjax.types import Array


class ResidualBlock(linen.Module):
    """``x + conv2(relu(conv1(x)))``, both 3×3."""

    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Conv(x.shape[-1], 3, dtype=self.dtype, name="conv1")(x))
        return x + nn.Conv(x.shape[-1], 3, dtype=self.dtype, name="conv2")(y)


class EDSR(linen.Module):
    """EDSR for images ``[n, h, w, c]``, float, about in 0 … 1; see the table above.

    Endpoints are ``body`` ``[n, h, w, features]`` and ``interpolated``, the image that the result is added to.

    Attributes:
      factor: 2 or 4, by which height and width grow.
      blocks, features: of the body.
      channels: channels of the images.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images do not have four axes, or the factor is no power of 2.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (48, 48, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}

    factor: int = 2
    blocks: int = 16
    features: int = 64
    channels: int = 3
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        steps = self.factor.bit_length() - 1
        if self.factor < 2 or 2**steps != self.factor:
            raise ValueError(f"expected a factor of 2, 4 or 8, got {self.factor}")
        x = head = nn.Conv(self.features, 3, dtype=self.dtype, name="head")(images)
        for i in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"block{i + 1}")(x)
        x = body = head + nn.Conv(self.features, 3, dtype=self.dtype, name="body")(x)
        for i in range(steps):
            x = nn.SubPixel(self.features, 2, dtype=self.dtype, name=f"up{i + 1}")(x)
        zeros = linen.initializers.zeros_init()
        x = nn.Conv(self.channels, 3, dtype=self.dtype, kernel_init=zeros, name="tail")(x).astype(jnp.float32)
        height, width = images.shape[1:3]
        interpolated = resize.bicubic(images.astype(jnp.float32), (height * self.factor, width * self.factor))
        return interpolated + x, {"body": body, "interpolated": interpolated}


VARIANTS = {"edsr": EDSR}
