"""ResNet (He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1), its pre-activation
form ("Identity Mappings in Deep Residual Networks", ECCV 2016), and SE-ResNet (Hu, Shen & Sun, "Squeeze-and-Excitation
Networks", CVPR 2018, Table 1).

    stem     7×7, 64, stride 2; max pooling 3×3, stride 2
    stage1   residual units of 64 features (bottlenecks: 64, 64, 256)
    stage2   128 (128, 128, 512), the first unit with stride 2
    stage3   256 (256, 256, 1024), as before
    stage4   512 (512, 512, 2048), as before
    head     global average, num_classes

    units per stage: 18: 2 2 2 2    34, 50: 3 4 6 3    101: 3 4 23 3    152: 3 8 36 3; bottlenecks from 50 on

``resnet50`` has its stride in the 3×3 convolution, as torchvision (known as v1.5). ``resnet50_v1`` has it in the first
1×1, as the paper and Keras; Keras' convolutions also have biases, which have no effect before BatchNorm and are left
out. The chapter calls a bottleneck 1×1, 1×1, 1×1: its middle is 3×3. ``resnet50_v2`` is Keras', after the authors'
code: the stride is in the last unit of a stage, and convolutions have biases where no BatchNorm follows.

Kernels start as torchvision's, He normal by fan-out (the paper: by fan-in). With ``zero_init`` each residual branch
ends in a scale of zero, so that units start as the identity (Goyal et al. 2017, sec. 5.1).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_FEATURES = (64, 128, 256, 512)  # of the 3×3 convolutions, by stage


_STRIDES = {"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}


class Dilations(NamedTuple):
    """Dilations of the 3×3 convolutions of a stage: of its first unit, and of the others."""

    first: int = 1
    others: int = 1


class Unit(linen.Module):
    """``relu(x + branch(x))``; a 1×1 convolution on the shortcut where the shape changes.

    The branch is 3×3, 3×3, or with ``bottleneck`` 1×1, 3×3, 1×1, the last with four times the features.

    Attributes:
      features: of the 3×3 convolutions.
      strides: of the first convolution of the branch, in a bottleneck of the 3×3 unless ``stride_first``.
      bottleneck: three convolutions.
      stride_first: a bottleneck has its strides in the first 1×1.
      zero_init: the scale of the branch's last BatchNorm starts at zero.
      reduction: of squeeze-and-excitation at the end of the branch; None: no squeeze-and-excitation.
      conv_norm: makes the layers.
      dilation: of the 3×3 convolutions.
    """

    features: int
    strides: int
    bottleneck: bool
    stride_first: bool
    zero_init: bool
    reduction: int | None
    conv_norm: Any
    dilation: int = 1

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = 4 * self.features if self.bottleneck else self.features
        first, second = (self.strides, 1) if self.stride_first or not self.bottleneck else (1, self.strides)
        init = linen.initializers.zeros_init() if self.zero_init else linen.initializers.ones_init()
        last = functools.partial(self.conv_norm, features, activation=None, scale_init=init)
        spread = {"padding": self.dilation, "dilation": self.dilation}
        if self.bottleneck:
            y = self.conv_norm(self.features, 1, strides=first, name="conv1")(x, train)
            y = self.conv_norm(self.features, 3, strides=second, **spread, name="conv2")(y, train)
            y = last(1, name="conv3")(y, train)
        else:
            y = self.conv_norm(self.features, 3, strides=first, **spread, name="conv1")(x, train)
            y = last(3, **spread, name="conv2")(y, train)
        if self.reduction is not None:
            y = nn.SqueezeExcite(self.reduction, dtype=self.conv_norm.keywords["dtype"], name="se")(y)
        if self.strides > 1 or x.shape[-1] != features:
            x = self.conv_norm(features, 1, strides=self.strides, activation=None, name="shortcut")(x, train)
        return nn.relu(x + y)


class Stage(linen.Module):
    """``blocks`` units, the first with ``strides``; ``unit`` makes them, which need no ``dilation`` where it is 1."""

    blocks: int
    strides: int
    unit: Any
    dilations: Dilations = Dilations()

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.blocks):
            strides, dilation = (1, self.dilations.others) if i else (self.strides, self.dilations.first)
            spread = {} if dilation == 1 else {"dilation": dilation}
            x = self.unit(strides=strides, **spread, name=f"block{i + 1}")(x, train)
        return x


class ResNet(linen.Module):
    """ResNet of the table above, for images ``[n, h, w, c]`` of any size, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem (before pooling), stage1, stage2, stage3, stage4 ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``,
    rounded up, and pooled ``[n, features]``.

    With an ``output_stride`` of 16 or 8 the last one or two stages keep the size of the maps, and their 3×3
    convolutions are dilated so that they see as far as before (Yu, Koltun & Funkhouser 2017; as in torchvision the
    first unit of a stage has the dilation of the stage before).

    Attributes:
      blocks: units of each of the four stages.
      bottleneck: units have three convolutions, 1×1, 3×3, 1×1.
      stride_first: bottlenecks have their stride in the first 1×1.
      reduction: of squeeze-and-excitation; None: no squeeze-and-excitation.
      output_stride: total stride of the last stages, in pixels: 32, 16 or 8.
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      zero_init: units start as the identity.
      momentum, epsilon: of BatchNorm.
      remat: compute each stage's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images do not have four axes, or there is no such output stride.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}

    blocks: Sequence[int]
    bottleneck: bool = True
    stride_first: bool = False
    reduction: int | None = None
    output_stride: int = 32
    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    zero_init: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    remat: bool = False
    dtype: Dtype | None = None

    @property
    def strides(self) -> Mapping[str, int]:
        """Endpoint → total stride."""
        return {name: min(stride, self.output_stride) for name, stride in _STRIDES.items()}

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"expected an output_stride of 8, 16 or 32, got {self.output_stride}")
        conv_norm = functools.partial(
            nn.ConvNorm,
            kernel_init=nn.he_normal_fan_out,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        unit = functools.partial(
            Unit,
            bottleneck=self.bottleneck,
            stride_first=self.stride_first,
            zero_init=self.zero_init,
            reduction=self.reduction,
            conv_norm=conv_norm,
        )
        endpoints: dict[str, jax.Array] = {}
        x = endpoints["stem"] = conv_norm(64, 7, strides=2, padding=3, name="stem")(images, train)
        x = nn.max_pool(x, 3, strides=2, padding=1)
        stage = nn.rematerialized(Stage, self.remat)
        for i, (blocks, features) in enumerate(zip(self.blocks, _FEATURES, strict=True)):
            name = f"stage{i + 1}"
            before, wanted = 4 * 2 ** max(i - 1, 0), 4 * 2**i  # strides of an undilated network
            dilations = Dilations(max(1, before // self.output_stride), max(1, wanted // self.output_stride))
            strides = self.strides[name] // self.strides[f"stage{i}"] if i else 1
            layer = stage(blocks, strides, functools.partial(unit, features), dilations, name=name)
            x = endpoints[name] = layer(x, train)
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, name="head")(x, train), endpoints


class PreActivationUnit(linen.Module):
    """``shortcut + branch(relu(norm(x)))``: the branch is a bottleneck, whose last convolution has a bias.

    With ``project`` the shortcut is a 1×1 convolution of the activated input, else x itself, subsampled by ``strides``.
    The bottleneck ends in four times ``features``.
    """

    features: int
    strides: int
    project: bool
    norm: Any
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=nn.he_normal_fan_out)
        active = nn.relu(self.norm(name="norm1")(x, use_running_average=not train))
        if self.project:
            x = conv(4 * self.features, 1, strides=self.strides, name="shortcut")(active)
        elif self.strides > 1:
            x = x[:, :: self.strides, :: self.strides]
        y = conv(self.features, 1, use_bias=False, name="conv1")(active)
        y = nn.relu(self.norm(name="norm2")(y, use_running_average=not train))
        y = conv(self.features, 3, strides=self.strides, padding=1, use_bias=False, name="conv2")(y)
        y = nn.relu(self.norm(name="norm3")(y, use_running_average=not train))
        return x + conv(4 * self.features, 1, name="conv3")(y)


class PreActivationStage(linen.Module):
    """``blocks`` units, the last with ``strides``; returns its feature map and that before it."""

    blocks: int
    strides: int
    unit: Any

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        for i in range(self.blocks - 1):
            x = self.unit(strides=1, project=i == 0, name=f"block{i + 1}")(x, train)
        return self.unit(strides=self.strides, project=False, name=f"block{self.blocks}")(x, train), x


class ResNetV2(linen.Module):
    """Pre-activation ResNet with bottlenecks, for images ``[n, h, w, c]`` of any size, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem, stage1, stage2, stage3, stage4, the last feature map of each size
    ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, rounded up (stage4 normalized and activated, the others not
    activated), and pooled ``[n, features]``. Attributes and errors are those of ``ResNet``.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    blocks: Sequence[int]
    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    momentum: float = 0.99
    epsilon: float = 1.001e-5
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        norm = functools.partial(nn.BatchNorm, momentum=self.momentum, epsilon=self.epsilon)
        stem = nn.Conv(64, 7, strides=2, padding=3, dtype=self.dtype, kernel_init=nn.he_normal_fan_out, name="stem")(
            images
        )
        endpoints = {"stem": stem}
        # The padding is zeros, which win over negative values: nothing is activated yet.
        x = nn.max_pool(jnp.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, strides=2)
        stage = nn.rematerialized(PreActivationStage, self.remat)
        for i, (blocks, features) in enumerate(zip(self.blocks, _FEATURES, strict=True)):
            name = f"stage{i + 1}"
            unit = functools.partial(PreActivationUnit, features, norm=norm, dtype=self.dtype)
            x, endpoints[name] = stage(blocks, 2 if i < 3 else 1, unit, name=name)(x, train)
        x = endpoints["stage4"] = nn.relu(norm(name="norm")(x, use_running_average=not train))
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, name="head")(x, train), endpoints


BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

VARIANTS = {
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2), bottleneck=False),
    "resnet34": functools.partial(ResNet, (3, 4, 6, 3), bottleneck=False),
    **{f"resnet{depth}": functools.partial(ResNet, blocks) for depth, blocks in BLOCKS.items()},
    **{
        f"resnet{depth}_v1": functools.partial(ResNet, blocks, stride_first=True, momentum=0.99, epsilon=1.001e-5)
        for depth, blocks in BLOCKS.items()
    },
    "resnet50_v2": functools.partial(ResNetV2, BLOCKS[50]),
    **{f"seresnet{depth}": functools.partial(ResNet, blocks, reduction=16) for depth, blocks in BLOCKS.items()},
}
