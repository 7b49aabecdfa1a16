"""MobileNet (Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
Table 1) and MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018, Table 2).

    mobilenet_v1                                         mobilenet_v2, t the expansion
    stem          3×3, 32, stride 2                      stem        3×3, 32, stride 2
    block1         64                                    block1       16, t 1
    block2, 3     128, the first with stride 2           block2–3     24, t 6, the first with stride 2
    block4, 5     256, as before                         block4–6     32, t 6, as before
    block6–11     512, as before                         block7–10    64, t 6, as before
    block12, 13  1024, as before                         block11–13   96, t 6
    head          global average, num_classes            block14–16  160, t 6, the first with stride 2
                                                         block17     320, t 6
                                                         last        1×1, 1280
                                                         head        global average, num_classes

The numbers are features. A block of v1 is a depthwise 3×3 and a 1×1 convolution. A block of v2 is a 1×1 convolution to
t times its input's channels, a depthwise 3×3 and a 1×1 without activation, with a shortcut around them where the shape
stays. BatchNorm follows every convolution, and ReLU6 all but the last of v2's blocks. ``width`` multiplies the
features.

The defaults are Keras'. Its v1 pads strided depthwise convolutions with one row and column at the end, also of odd
sizes, which "SAME" would pad on both sides. ``padding=1, epsilon=1e-5, momentum=0.9`` gives torchvision's v2 and timm's
v1. The last layer of Keras' v1 is a 1×1 convolution, which on one pixel is the dense layer here.

Kernels start He normal by fan-in, those without activation with half its variance.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops.window import Padding
from cnnjax.types import Array

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_SMALLEST = 31  # pixels: the stem rounds up and leaves 16, which four strided blocks halve to one


class Separable(linen.Module):
    """Depthwise 3×3, then 1×1 convolution, each made by ``conv_norm``; ``padding`` matters only for strides above 1."""

    features: int
    strides: int
    padding: Padding
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        padding = self.padding if self.strides > 1 else 1
        x = self.conv_norm(None, 3, strides=self.strides, padding=padding, name="depthwise")(x, train)
        return self.conv_norm(self.features, 1, name="pointwise")(x, train)


class InvertedResidual(linen.Module):
    """1×1 convolution to ``expansion`` times the channels (1: none), depthwise 3×3, 1×1 without activation.

    The input is added where it has the shape of the result.
    """

    expansion: int
    features: int
    strides: int
    padding: Padding
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        y = x
        if self.expansion > 1:
            y = self.conv_norm(self.expansion * x.shape[-1], 1, name="expand")(y, train)
        y = self.conv_norm(None, 3, strides=self.strides, padding=self.padding, name="depthwise")(y, train)
        linear = functools.partial(self.conv_norm, activation=None, kernel_init=linen.initializers.lecun_normal())
        y = linear(self.features, 1, name="project")(y, train)
        return x + y if self.strides == 1 and x.shape[-1] == self.features else y


class MobileNet(linen.Module):
    """MobileNet of the table above, for images ``[n, h, w, c]`` with h, w ≥ 31 pixels, float in [-1, 1].

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints block1, block3, block5, block11, block13, the last feature map of each size
    ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, and pooled ``[n, features]``. Training needs
    ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      width: multiplier of the features, which are rounded down.
      padding: of the stem and of strided depthwise convolutions: None as Keras, 1 as torch (then of any size).
      dropout: probability that a value of ``pooled`` is dropped.
      momentum, epsilon: of BatchNorm.
      remat: compute each block's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller, or the padding is another.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"block1": 2, "block3": 4, "block5": 8, "block11": 16, "block13": 32}

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    width: float = 1.0
    padding: int | None = None
    dropout: float = 1e-3
    momentum: float = 0.99
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, _SMALLEST if self.padding is None else 1)
        if self.padding is not None:
            nn.check_padding(self.padding)
        conv_norm = functools.partial(
            nn.ConvNorm, activation=nn.relu6, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        first, strided = ("SAME", ((0, 1), (0, 1))) if self.padding is None else (self.padding, self.padding)
        x = conv_norm(int(32 * self.width), 3, strides=2, padding=first, name="stem")(images, train)
        endpoints: dict[str, jax.Array] = {}
        block = nn.rematerialized(Separable, self.remat)
        for i, (features, strides) in enumerate(_BLOCKS, start=1):
            if strides > 1:
                endpoints[f"block{i - 1}"] = x
            x = block(int(features * self.width), strides, strided, conv_norm, name=f"block{i}")(x, train)
        endpoints[f"block{len(_BLOCKS)}"] = x
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


def _rounded(features: float) -> int:
    """The nearest multiple of 8 that is at least 8 and at most a tenth less than ``features``."""
    nearest = max(8, int(features + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * features else nearest


class MobileNetV2(linen.Module):
    """MobileNetV2 of the table above, for images ``[n, h, w, c]`` of any size, float in [-1, 1].

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints block1, block3, block6, block13, last, the last feature map of each size
    ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, rounded up (all but ``last`` not activated), and pooled
    ``[n, features]``. Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      width: multiplier of the features, which are rounded to multiples of 8; ``last`` never has fewer than 1280.
      padding: of all 3×3 convolutions: "SAME" as Keras, 1 as torch.
      dropout: probability that a value of ``pooled`` is dropped (the authors' and torchvision's; Keras has none).
      momentum, epsilon: of BatchNorm.
      remat: compute each block's activations again in the backward pass, so that the expanded ones are not kept.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images do not have four axes, or the padding is another.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"block1": 2, "block3": 4, "block6": 8, "block13": 16, "last": 32}

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    width: float = 1.0
    padding: Padding = "SAME"
    dropout: float = 0.2
    momentum: float = 0.999
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        nn.check_padding(self.padding)
        conv_norm = functools.partial(
            nn.ConvNorm, activation=nn.relu6, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        x = conv_norm(_rounded(32 * self.width), 3, strides=2, padding=self.padding, name="stem")(images, train)
        endpoints: dict[str, jax.Array] = {}
        block = nn.rematerialized(InvertedResidual, self.remat)
        i = 0
        for expansion, features, blocks, strides in _STAGES:
            if strides > 1:
                endpoints[f"block{i}"] = x
            for step in (strides, *(blocks - 1) * (1,)):
                i += 1
                width = _rounded(features * self.width)
                x = block(expansion, width, step, self.padding, conv_norm, name=f"block{i}")(x, train)
        x = endpoints["last"] = conv_norm(_rounded(1280 * max(1.0, self.width)), 1, name="last")(x, train)
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {"mobilenet_v1": MobileNet, "mobilenet_v2": MobileNetV2}
