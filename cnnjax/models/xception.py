"""Xception (Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, Fig. 5).

    entry flow    stem      3×3, 32, stride 2; 3×3, 64; neither padded     149×149×32, 147×147×64 for 299×299
                  entry1    separable 128, 128; max pooling                74×74×128
                  entry2    separable 256, 256; max pooling                37×37×256
                  entry3    separable 728, 728; max pooling                19×19×728
    middle flow   middle1…8 separable 728, 728, 728                        19×19×728
    exit flow     exit1     separable 728, 1024; max pooling               10×10×1024
                  exit2     separable 1536, 2048                           10×10×2048
    head          global average, dropout of 0.5, num_classes

Every separable convolution is 3×3, with nothing between its depthwise and its 1×1 part, and BatchNorm follows it. ReLU
precedes it, except in exit2, where ReLU follows, and in the first of entry1. Max pooling is 3×3, stride 2. Around each
block but exit2 is a shortcut: its input, or where the shape changes a 1×1 convolution of stride 2 with BatchNorm. These
are the chapter's 34 separable convolutions: 2 + 2 + 2 + 8 · 3 + 2 + 2.

The defaults are those of Keras, by the author of the paper, except the dropout, which Keras leaves out. The paper does
not say how kernels start. Here they start He normal by fan-in, but the two parts of a separable convolution share its
factor of 2, as there is one ReLU before them.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops.window import Padding
from cnnjax.types import Array

_SMALLEST = 7  # pixels: the stem leaves one
_ENTRY: dict[str, tuple[int, ...]] = {"entry1": (128, 128), "entry2": (256, 256), "entry3": (728, 728)}
_MIDDLE: dict[str, tuple[int, ...]] = {f"middle{i}": (728, 728, 728) for i in range(1, 9)}
_EXIT1 = (728, 1024)
_EXIT2 = (1536, 2048)

_STRIDES = {
    "stem": 2,
    "entry1_map": 2,
    "entry1": 4,
    "entry2_map": 4,
    "entry2": 8,
    "entry3_map": 8,
    "entry3": 16,
    "middle": 16,
    "exit1_map": 16,
    "exit1": 32,
    "exit2": 32,
}
_half_he_normal = linen.initializers.variance_scaling(2**0.5, "fan_in", "truncated_normal")


class SeparableNorm(linen.Module):
    """Separable 3×3 convolution ``conv``, then BatchNorm ``norm``."""

    features: int
    momentum: float
    epsilon: float
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        conv = nn.SeparableConv(
            self.features, 3, use_bias=False, dtype=self.dtype, kernel_init=_half_he_normal, name="conv"
        )
        norm = nn.BatchNorm(momentum=self.momentum, epsilon=self.epsilon, name="norm")
        return norm(conv(x), use_running_average=not train)


class Block(linen.Module):
    """``shortcut(x) + branch(x)``: the branch is ReLU and separable convolutions by turns, at the end max pooling.

    Returns the sum, and the feature map of the branch before pooling.

    Attributes:
      features: of each separable convolution.
      pool: padding of max pooling; None: no pooling, and the shortcut is x itself.
      activate: the branch begins with ReLU.
      separable, conv_norm: make the layers.
    """

    features: tuple[int, ...]
    pool: Padding | None
    activate: bool
    separable: Any
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> tuple[jax.Array, jax.Array]:
        y = jnp.asarray(x)
        for i, features in enumerate(self.features):
            if i or self.activate:
                y = nn.relu(y)
            y = self.separable(features, name=f"sepconv{i + 1}")(y, train)
        if self.pool is None:
            return y + x, y
        shortcut = self.conv_norm(self.features[-1], 1, strides=2, activation=None, name="shortcut")
        return nn.max_pool(y, 3, strides=2, padding=self.pool) + shortcut(x, train), y


class Xception(linen.Module):
    """Xception of the table above, for images ``[n, h, w, c]`` of at least 7 by 7 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem, entry1, entry2, entry3, middle, exit1, exit2 (stem and exit2 after ReLU, the others sums, not
    activated), entry1_map, entry2_map, entry3_map, exit1_map (the branches of these blocks before pooling, not
    activated), all ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, less borders that are not padded, and pooled
    ``[n, 2048]``. Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of ``pooled`` is dropped.
      padding: of max pooling: "SAME" pads even sizes only at their end, as Keras; 1 pads both sides, as torch. timm's
        ``legacy_xception`` has padding 1, epsilon 1e-5, momentum 0.9.
      momentum, epsilon: of BatchNorm.
      remat: compute each block's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller, or the padding is another.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (299, 299, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.5
    padding: Padding = "SAME"
    momentum: float = 0.99
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, _SMALLEST)
        nn.check_padding(self.padding)
        norm: Any = {"momentum": self.momentum, "epsilon": self.epsilon, "dtype": self.dtype}
        conv_norm: Any = functools.partial(nn.ConvNorm, **norm)
        separable: Any = functools.partial(SeparableNorm, **norm)
        block = functools.partial(nn.rematerialized(Block, self.remat), separable=separable, conv_norm=conv_norm)
        endpoints: dict[str, jax.Array] = {}
        x = conv_norm(32, 3, strides=2, padding="VALID", name="stem1")(images, train)
        x = endpoints["stem"] = conv_norm(64, 3, padding="VALID", name="stem2")(x, train)
        for name, features in _ENTRY.items():
            layer = block(features, self.padding, activate=name != "entry1", name=name)
            x, endpoints[f"{name}_map"] = layer(x, train)
            endpoints[name] = x
        for name, features in _MIDDLE.items():
            x, _ = block(features, None, activate=True, name=name)(x, train)
        endpoints["middle"] = x
        x, endpoints["exit1_map"] = block(_EXIT1, self.padding, activate=True, name="exit1")(x, train)
        endpoints["exit1"] = x
        for i, width in enumerate(_EXIT2, start=1):
            x = nn.relu(separable(width, name=f"exit2_sepconv{i}")(x, train))
        endpoints["exit2"] = x
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {"xception": Xception}
