"""DeepLabv3 (Chen, Papandreou, Schroff & Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
sec. 3.3, Fig. 5) on a dilated ResNet, as torchvision.

    last map of stride 8, side by side to 256 features each:
        1×1; 3×3 dilated by 12, 24, 36; global average, 1×1      (atrous spatial pyramid pooling)
    together 1×1 256, dropout 0.5; 3×3 256; classes 1×1; bilinear interpolation to the size of the images

BatchNorm and ReLU follow every convolution but the last. The rates are the paper's for a stride of 8.
"""

import functools
from collections.abc import Sequence

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.models import resnet
from cnnjax.models.segmentation.fcn import DilatedSegmenter
from cnnjax.types import Array


class PyramidPooling(linen.Module):
    """Atrous spatial pyramid pooling: ``branch0`` 1×1, ``branch1`` … dilated 3×3, ``pooled``, and ``project``."""

    features: int
    rates: Sequence[int]
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        layer = functools.partial(nn.ConvNorm, self.features, dtype=self.dtype)
        parts = [layer(1, name="branch0")(x, train)]
        for i, rate in enumerate(self.rates, start=1):
            parts.append(layer(3, padding=rate, dilation=rate, name=f"branch{i}")(x, train))
        pooled = layer(1, name="pooled")(nn.global_avg_pool(x)[:, None, None], train)
        parts.append(jnp.broadcast_to(pooled, parts[0].shape))
        x = layer(1, name="project")(jnp.concatenate(parts, axis=-1), train)
        return linen.Dropout(0.5, deterministic=not train)(x)


class DeepLabHead(linen.Module):
    """``PyramidPooling``, convolution 3×3 ``hidden``, and ``classifier`` 1×1: logits of each position."""

    num_classes: int
    rates: Sequence[int]
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        x = PyramidPooling(256, self.rates, self.dtype, name="pyramid")(x, train)
        x = nn.ConvNorm(256, 3, padding=1, dtype=self.dtype, name="hidden")(x, train)
        return nn.Conv(self.num_classes, 1, dtype=self.dtype, name="classifier")(x)


class DeepLabV3(DilatedSegmenter):
    """DeepLabv3 on a dilated base, see ``DilatedSegmenter``.

    Attributes:
      rates: dilations of the 3×3 convolutions.
    """

    rates: Sequence[int] = (12, 24, 36)

    @linen.nowrap
    def head(self, x: Array, train: bool) -> jax.Array:
        """Logits of each position of the last map."""
        return DeepLabHead(self.num_classes, self.rates, self.dtype, name="head")(x, train)


def _deeplab(
    depth: int,
    base: linen.Module | None = None,
    num_classes: int = 21,
    aux: bool = True,
    rates: Sequence[int] = (12, 24, 36),
    remat: bool = False,
    dtype: Dtype | None = None,
) -> DeepLabV3:
    base = base or resnet.ResNet(resnet.BLOCKS[depth], num_classes=None, output_stride=8, remat=remat, dtype=dtype)
    return DeepLabV3(base, num_classes, aux, dtype, tuple(rates))


VARIANTS = {
    "deeplabv3_resnet50": functools.partial(_deeplab, 50),
    "deeplabv3_resnet101": functools.partial(_deeplab, 101),
}
