"""Darknet-19 (Redmon & Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, Table 6) and Darknet-53 (Redmon &
Farhadi, "YOLOv3: An Incremental Improvement", 2018, Table 1).

    Darknet-19   features (3×3 and 1×1 in turn)      Darknet-53   downsample   residual units
    stage1       32                                  stem         32
    stage2       64                                  stage1       64           1 × (32, 64)
    stage3       128, 64, 128                        stage2       128          2 × (64, 128)
    stage4       256, 128, 256                       stage3       256          8 × (128, 256)
    stage5       512, 256, 512, 256, 512             stage4       512          8 × (256, 512)
    stage6       1024, 512, 1024, 512, 1024          stage5       1024         4 × (512, 1024)
    head         1×1, classes, global average        head         global average, dense

Every convolution is followed by BatchNorm and a leaky ReLU of slope 0.1. Darknet-19 pools 2×2 before all stages but the
first; Darknet-53 has a 3×3 convolution with stride 2 in each stage, and units 1×1 (half the features), 3×3 with a sum
around them. Padding is 1 on all sides of 3×3 windows. The modules are called in the order of Darknet's weights.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

EPSILON = 1e-6  # of BatchNorm in the authors' program
MOMENTUM = 0.99  # there too
_STAGES_19 = ((32,), (64,), (128, 64, 128), (256, 128, 256), (512, 256) * 2 + (512,), (1024, 512) * 2 + (1024,))
_UNITS_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))  # features and units by stage

conv_norm = functools.partial(nn.ConvNorm, epsilon=EPSILON, momentum=MOMENTUM, activation=nn.leaky_relu)


class Darknet19(linen.Module):
    """Darknet-19 of the table above, for images ``[n, h, w, c]``, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stage1, stage2, stage3, stage4, stage5, stage6, ``[n, h / 2^(i−1), w / 2^(i−1), features]``, rounded down,
    and pooled ``[n, 1024]``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      remat: compute each stage's activations again in the backward pass.
      dtype: type computed in; None: float32.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.

    Raises:
      ValueError: the images are smaller than 32 pixels.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {f"stage{i}": 2 ** (i - 1) for i in range(1, 7)}

    num_classes: int | None = 1000
    remat: bool = False
    dtype: Dtype | None = None
    window: tuple[int, int] | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 32)
        stage = nn.rematerialized(Plain, self.remat)
        x, endpoints = images, {}
        for i, features in enumerate(_STAGES_19, start=1):
            x = nn.max_pool(x, 2) if i > 1 else x
            x = endpoints[f"stage{i}"] = stage(features, self.dtype, name=f"stage{i}")(x, train)
        endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        logits = nn.global_avg_pool(nn.Conv(self.num_classes, 1, dtype=self.dtype, name="head")(x), self.window)
        return logits.astype(jnp.float32), endpoints


class Plain(linen.Module):
    """Convolutions of a stage of Darknet-19, ``conv1`` …: 3×3 and 1×1 in turn."""

    features: tuple[int, ...]
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, features in enumerate(self.features):
            size = 1 if i % 2 else 3
            x = conv_norm(features, size, padding=size // 2, dtype=self.dtype, name=f"conv{i + 1}")(x, train)
        return x


class Darknet53(linen.Module):
    """Darknet-53 of the table above, for images ``[n, h, w, c]``, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem ``[n, h, w, 32]``, stage1, stage2, stage3, stage4, stage5 ``[n, h / 2^i, w / 2^i, features]``, sizes
    rounded up, and pooled ``[n, 1024]``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      remat: compute each stage's activations again in the backward pass.
      dtype: type computed in; None: float32.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.

    Raises:
      ValueError: the images do not have four axes.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (256, 256, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"stem": 1} | {f"stage{i}": 2**i for i in range(1, 6)}

    num_classes: int | None = 1000
    remat: bool = False
    dtype: Dtype | None = None
    window: tuple[int, int] | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        stage = nn.rematerialized(Residual, self.remat)
        x = conv_norm(32, 3, padding=1, dtype=self.dtype, name="stem")(images, train)
        endpoints = {"stem": x}
        for i, (features, units) in enumerate(_UNITS_53, start=1):
            x = endpoints[f"stage{i}"] = stage(features, units, self.dtype, name=f"stage{i}")(x, train)
        endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        # The authors write the dense layer as a 1×1 convolution of the average.
        head = nn.Conv(self.num_classes, 1, dtype=self.dtype, name="head")
        pooled = endpoints["pooled"]
        logits = head(pooled) if self.window else head(pooled[:, None, None])[:, 0, 0]
        return logits.astype(jnp.float32), endpoints


class Residual(linen.Module):
    """Stage of Darknet-53: ``downsample``, then ``units`` of ``reduceN`` 1×1 and ``expandN`` 3×3 with a sum around."""

    features: int
    units: int
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        layer = functools.partial(conv_norm, dtype=self.dtype)
        x = layer(self.features, 3, strides=2, padding=1, name="downsample")(x, train)
        for i in range(1, self.units + 1):
            y = layer(self.features // 2, 1, name=f"reduce{i}")(x, train)
            x = x + layer(self.features, 3, padding=1, name=f"expand{i}")(y, train)
        return x


VARIANTS = {"darknet19": Darknet19, "darknet53": Darknet53}
