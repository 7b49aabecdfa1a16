"""ResNet-34 as the chapter builds it ("Implementing a ResNet-34 CNN Using Keras"), to be read beside its code.

    stem         7×7, 64, stride 2; max pooling 3×3, stride 2
    unit1–3      residual units of  64 features
    unit4–7                        128, the first with stride 2
    unit8–13                       256, as before
    unit14–16                      512, as before
    head         global average, num_classes

It is He et al.'s ResNet-34 (``resnet34`` of this package) with Keras' defaults: "same" padding, which with stride 2
pads even sizes at their end only, BatchNorm's constants, and Glorot uniform kernels. The head gives logits: the softmax
is in the loss. Names are those of the chapter's code.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_UNITS = (64,) * 3 + (128,) * 4 + (256,) * 6 + (512,) * 3  # filters
_STRIDES = {"stem": 2} | {f"unit{i}": filters // 16 for i, filters in enumerate(_UNITS, start=1)}
_init = linen.initializers.glorot_uniform()


class ResidualUnit(linen.Module):
    """``relu(main(x) + skip(x))`` of Fig. 14-18: main is two 3×3 convolutions, skip one 1×1 where strides > 1."""

    filters: int
    strides: int
    conv_norm: Any

    @linen.compact
    def __call__(self, inputs: Array, train: bool) -> jax.Array:
        z = self.conv_norm(self.filters, 3, strides=self.strides, name="main1")(inputs, train)
        z = self.conv_norm(self.filters, 3, activation=None, name="main2")(z, train)
        skip_z = inputs
        if self.strides > 1:
            skip_z = self.conv_norm(self.filters, 1, strides=self.strides, activation=None, name="skip")(inputs, train)
        return nn.relu(z + skip_z)


class ResNet34(linen.Module):
    """The chapter's ResNet-34, for images ``[n, h, w, c]`` of any size, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem, unit1, unit2, unit3, unit4, unit5, unit6, unit7, unit8, unit9, unit10, unit11, unit12, unit13,
    unit14, unit15, unit16 ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, rounded up, and pooled ``[n, 512]``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      momentum, epsilon: of BatchNorm.
      remat: compute each unit's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images do not have four axes.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    num_classes: int | None = 10
    window: tuple[int, int] | None = None
    momentum: float = 0.99
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        conv_norm = functools.partial(
            nn.ConvNorm, kernel_init=_init, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        unit = nn.rematerialized(ResidualUnit, self.remat)
        x = stem = conv_norm(64, 7, strides=2, name="stem")(images, train)
        x = nn.max_pool(x, 3, strides=2, padding="SAME")
        endpoints, prev_filters = {"stem": stem}, 64
        for i, filters in enumerate(_UNITS, start=1):
            strides = 1 if filters == prev_filters else 2
            x = endpoints[f"unit{i}"] = unit(filters, strides, conv_norm, name=f"unit{i}")(x, train)
            prev_filters = filters
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, kernel_init=_init, name="head")(x, train), endpoints


VARIANTS = {"resnet34_chapter": ResNet34}
