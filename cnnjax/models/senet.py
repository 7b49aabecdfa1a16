"""SENet-154, a part of the entry that won ILSVRC 2017 (Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018,
and the appendix of its long form, arXiv:1709.01507; Fig. 14-20 to 14-22 of the chapter).

    stem     3×3, 64, stride 2; 3×3, 64; 3×3, 128; max pooling 3×3, stride 2
    stage1    3 bottlenecks of 128, 256, 256 features
    stage2    8 of 256, 512, 512, the first with stride 2
    stage3   36 of 512, 1024, 1024, as before
    stage4    3 of 1024, 2048, 2048, as before
    head     global average, dropout, num_classes

It is a ResNeXt-152 with 64 groups that the authors changed: the first convolution of a bottleneck has half the features
of its 3×3, the stem is three 3×3, the shortcuts with stride 2 are 3×3 convolutions, and dropout precedes the head.
Every branch ends in squeeze-and-excitation. Max pooling pads at the end only, so that sizes are rounded up, as in
Caffe, where it was trained. Kernels start He normal by fan-out.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.models.resnet import Stage
from cnnjax.types import Array

_STAGES = ((3, 64), (8, 128), (36, 256), (3, 512))  # bottlenecks, a fourth of their features
_SMALLEST = 3  # pixels: two after the stem, one for the pooling


class Bottleneck(linen.Module):
    """``relu(shortcut + se(branch(x)))``: the branch is 1×1, 3×3 in 64 groups, 1×1 of 2, 4 and 4 times ``quarter``.

    Where the shape changes the shortcut is a convolution: 1×1, or 3×3 with strides; ``conv_norm`` makes the layers.
    """

    quarter: int
    strides: int
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        features = 4 * self.quarter
        y = self.conv_norm(2 * self.quarter, 1, name="conv1")(x, train)
        y = self.conv_norm(features, 3, strides=self.strides, padding=1, groups=64, name="conv2")(y, train)
        y = self.conv_norm(features, 1, activation=None, name="conv3")(y, train)
        y = nn.SqueezeExcite(dtype=self.conv_norm.keywords["dtype"], name="se")(y)
        if self.strides > 1 or x.shape[-1] != features:
            size, padding = (3, 1) if self.strides > 1 else (1, 0)
            shortcut = functools.partial(self.conv_norm, features, size, activation=None, name="shortcut")
            x = shortcut(strides=self.strides, padding=padding)(x, train)
        return nn.relu(x + y)


class SENet(linen.Module):
    """SENet-154 of the table above, for images ``[n, h, w, c]`` with h, w ≥ 3 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem (before pooling), stage1, stage2, stage3, stage4 ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``
    and pooled ``[n, features]``. Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of ``pooled`` is dropped.
      momentum, epsilon: of BatchNorm.
      remat: compute each stage's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.2
    momentum: float = 0.9
    epsilon: float = 1e-5
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, _SMALLEST)
        conv_norm = functools.partial(
            nn.ConvNorm,
            kernel_init=nn.he_normal_fan_out,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        x = conv_norm(64, 3, strides=2, padding=1, name="stem1")(images, train)
        x = conv_norm(64, 3, padding=1, name="stem2")(x, train)
        endpoints: dict[str, jax.Array] = {}
        x = endpoints["stem"] = conv_norm(128, 3, padding=1, name="stem3")(x, train)
        x = nn.max_pool(x, 3, strides=2, padding=nn.ceil_padding(x, 3, 2))
        stage = nn.rematerialized(Stage, self.remat)
        for i, (blocks, quarter) in enumerate(_STAGES):
            name = f"stage{i + 1}"
            unit = functools.partial(Bottleneck, quarter, conv_norm=conv_norm)
            x = endpoints[name] = stage(blocks, 2 if i else 1, unit, name=name)(x, train)
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {"senet154": SENet}
