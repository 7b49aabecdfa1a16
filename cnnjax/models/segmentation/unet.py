"""U-Net (Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
Fig. 1), from scratch.

    down1 … down4    two 3×3 convolutions each of 64, 128, 256, 512 features; then 2×2 max pooling
    bottom           two of 1024
    up4 … up1        2×2 transposed convolution to half of the features, joined with the map of downN; two convolutions
    score            1×1 to the classes

ReLU follows every 3×3 convolution. The paper's convolutions do not pad, so that its output is smaller than the image
and maps are cropped to be joined; here they pad, poolings round up, and BatchNorm stands before each ReLU.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops import resize
from cnnjax.types import Array


class Pair(linen.Module):
    """Two 3×3 convolutions ``conv1`` and ``conv2`` with BatchNorm and ReLU."""

    features: int
    momentum: float
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        for name in ("conv1", "conv2"):
            x = nn.ConvNorm(self.features, 3, momentum=self.momentum, dtype=self.dtype, name=name)(x, train)
        return jnp.asarray(x)


class UNet(linen.Module):
    """U-Net for images ``[n, h, w, c]``; see the table above.

    Endpoints are down1, … and bottom, up4, …, up1, ``[n, h / stride, w / stride, features]`` rounded up.

    Attributes:
      num_classes: number of classes.
      features: features of each size, from fine to coarse.
      momentum: momentum of BatchNorm.
      remat: compute each pair's activations again in the backward pass.
      dtype: type computed in; None: float32.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (256, 256, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}

    num_classes: int = 2
    features: Sequence[int] = (64, 128, 256, 512, 1024)
    momentum: float = 0.9
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        pair = nn.rematerialized(Pair, self.remat)
        *sizes, coarsest = self.features
        endpoints: dict[str, jax.Array] = {}
        x: Array = images
        for i, features in enumerate(sizes, start=1):
            down = endpoints[f"down{i}"] = pair(features, self.momentum, self.dtype, name=f"down{i}")(x, train)
            x = nn.max_pool(down, 2, padding=nn.ceil_padding(down, 2, 2))
        x = endpoints["bottom"] = pair(coarsest, self.momentum, self.dtype, name="bottom")(x, train)
        for i, features in reversed(list(enumerate(sizes, start=1))):
            beside = endpoints[f"down{i}"]
            x = nn.ConvTranspose(features, 2, strides=2, dtype=self.dtype, name=f"stretch{i}")(x)
            x = jnp.concatenate([beside, resize.fit(x, beside.shape[1:3])], axis=-1)
            x = endpoints[f"up{i}"] = pair(features, self.momentum, self.dtype, name=f"up{i}")(x, train)
        return nn.Conv(self.num_classes, 1, dtype=self.dtype, name="score")(x).astype(jnp.float32), endpoints


VARIANTS = {"unet": UNet}
