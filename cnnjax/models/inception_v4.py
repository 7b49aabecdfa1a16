"""Inception-v4 and Inception-ResNet-v2 (Szegedy, Ioffe, Vanhoucke & Alemi, "Inception-v4, Inception-ResNet and the
Impact of Residual Connections on Learning", AAAI 2017).

    Inception-v4 (Fig. 9), 299×299            Inception-ResNet-v2 (the authors' code), 299×299
    stem1        147×147×64    Fig. 3         stem1        147×147×64
    stem2          73×73×160                  stem2          71×71×192
    stem3          71×71×192                  stem3          35×35×192    max pooling
    stem4          35×35×384                  mixed          35×35×320
    inception_a    35×35×384   4, Fig. 4      block35        35×35×320    10, scale 0.17
    reduction_a    17×17×1024  Fig. 7         reduction_a    17×17×1088
    inception_b    17×17×1024  7, Fig. 5      block17        17×17×1088   20, scale 0.10
    reduction_b      8×8×1536  Fig. 8         reduction_b      8×8×2080
    inception_c      8×8×1536  3, Fig. 6      block8           8×8×2080   9, scale 0.20
                                              block8_last      8×8×2080    1, scale 1, no ReLU
                                              conv             8×8×1536
    head: global average, dropout of 0.2, num_classes

The paper's Inception-ResNet-v2 (Fig. 15) has the stem of Inception-v4 and 5, 10 and 5 residual blocks. The table above
is the network that its authors published, and Keras after them: a shorter stem, twice as many blocks, and no scale in
BatchNorm. Where a stage has several blocks, they are called inception_a_1, inception_a_2…

Kernels start as in the authors' code, He normal by fan-in. The momentum of BatchNorm is timm's and Keras'.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_SMALLEST = 75  # pixels: the last feature map has one
_FORK = ((1, 3), (3, 1))
_POOLS = {"max": nn.max_pool, "avg": nn.avg_pool}

# A block is a table of branches side by side, a branch a row of layers: (features or kind of pooling, window, strides).
# Without strides the layer keeps the size of its input; with them nothing is padded (the paper's "V").
Layers = tuple[tuple[Any, ...], ...]
Branches = tuple[Layers, ...]
Stages = tuple[tuple[str, int, type[linen.Module], tuple[Any, ...]], ...]

_STEM1: Branches = (((32, 3, 2), (32, 3, 1), (64, 3)),)

_V4_STEM2: Branches = ((("max", 3, 2),), ((96, 3, 2),))
_V4_STEM3: Branches = (
    ((64, 1), (96, 3, 1)),
    ((64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)),
)
_V4_STEM4: Branches = (((192, 3, 2),), (("max", 3, 2),))
_V4_A: Branches = (
    ((96, 1),),
    ((64, 1), (96, 3)),
    ((64, 1), (96, 3), (96, 3)),
    (("avg", 3), (96, 1)),
)
_V4_REDUCTION_A: Branches = (
    ((384, 3, 2),),
    ((192, 1), (224, 3), (256, 3, 2)),
    (("max", 3, 2),),
)
_V4_B: Branches = (
    ((384, 1),),
    ((192, 1), (224, (1, 7)), (256, (7, 1))),
    ((192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
    (("avg", 3), (128, 1)),
)
_V4_REDUCTION_B: Branches = (
    ((192, 1), (192, 3, 2)),
    ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
    (("max", 3, 2),),
)
_V4_C: Branches = (
    ((256, 1),),
    ((384, 1), (256, _FORK)),
    ((384, 1), (448, (3, 1)), (512, (1, 3)), (256, _FORK)),
    (("avg", 3), (256, 1)),
)

_RESNET_STEM2: Branches = ((("max", 3, 2), (80, 1), (192, 3, 1)),)
_RESNET_STEM3: Branches = ((("max", 3, 2),),)
_RESNET_MIXED: Branches = (
    ((96, 1),),
    ((48, 1), (64, 5)),
    ((64, 1), (96, 3), (96, 3)),
    (("avg", 3), (64, 1)),
)
_RESNET_35: Branches = (
    ((32, 1),),
    ((32, 1), (32, 3)),
    ((32, 1), (48, 3), (64, 3)),
)
_RESNET_REDUCTION_A: Branches = (
    ((384, 3, 2),),
    ((256, 1), (256, 3), (384, 3, 2)),
    (("max", 3, 2),),
)
_RESNET_17: Branches = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))
_RESNET_REDUCTION_B: Branches = (
    ((256, 1), (384, 3, 2)),
    ((256, 1), (288, 3, 2)),
    ((256, 1), (288, 3), (320, 3, 2)),
    (("max", 3, 2),),
)
_RESNET_8: Branches = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
_RESNET_CONV: Branches = (((1536, 1),),)


class Branch(linen.Module):
    """``layers`` one after another; ``conv_norm`` makes the convolutions, conv1, conv2…

    A window ``_FORK`` stands for a 1×3 and a 3×1 convolution of one input, such as conv2a and conv2b, joined in depth.
    """

    layers: Layers
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        number = 0
        for features, window, *strides in self.layers:
            where = {"strides": strides[0], "padding": "VALID"} if strides else {"strides": 1, "padding": "SAME"}
            if features in _POOLS:
                x = _POOLS[features](x, window, **where)
                continue
            number += 1
            windows = {"a": window[0], "b": window[1]} if window == _FORK else {"": window}
            names = {f"conv{number}{part}": size for part, size in windows.items()}
            convs = [self.conv_norm(features, size, **where, name=name) for name, size in names.items()]
            x = jnp.concatenate([conv(x, train) for conv in convs], -1)
        return jnp.asarray(x)


class Mixed(linen.Module):
    """``branches`` side by side, joined in depth: branch1, branch2…"""

    branches: Branches
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        branches = [Branch(layers, self.conv_norm, name=f"branch{i + 1}") for i, layers in enumerate(self.branches)]
        return jnp.concatenate([branch(x, train) for branch in branches], -1)


class Residual(linen.Module):
    """``relu(x + scale · conv(mixed(x)))``, without the ReLU unless ``activate``.

    The 1×1 convolution ``conv`` has as many features as x has channels, a bias and no BatchNorm. Without the small
    scale training dies (sec. 3.3).
    """

    branches: Branches
    scale: float
    activate: bool
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        conv = nn.Conv(x.shape[-1], 1, dtype=self.conv_norm.keywords["dtype"], name="conv")
        y = self.scale * conv(Mixed(self.branches, self.conv_norm, name="mixed")(x, train)) + x
        return nn.relu(y) if self.activate else y


# Name of the stage, number of blocks, their class and its fields.
_V4: Stages = (
    ("stem1", 1, Mixed, (_STEM1,)),
    ("stem2", 1, Mixed, (_V4_STEM2,)),
    ("stem3", 1, Mixed, (_V4_STEM3,)),
    ("stem4", 1, Mixed, (_V4_STEM4,)),
    ("inception_a", 4, Mixed, (_V4_A,)),
    ("reduction_a", 1, Mixed, (_V4_REDUCTION_A,)),
    ("inception_b", 7, Mixed, (_V4_B,)),
    ("reduction_b", 1, Mixed, (_V4_REDUCTION_B,)),
    ("inception_c", 3, Mixed, (_V4_C,)),
)
_RESNET_V2: Stages = (
    ("stem1", 1, Mixed, (_STEM1,)),
    ("stem2", 1, Mixed, (_RESNET_STEM2,)),
    ("stem3", 1, Mixed, (_RESNET_STEM3,)),
    ("mixed", 1, Mixed, (_RESNET_MIXED,)),
    ("block35", 10, Residual, (_RESNET_35, 0.17, True)),
    ("reduction_a", 1, Mixed, (_RESNET_REDUCTION_A,)),
    ("block17", 20, Residual, (_RESNET_17, 0.1, True)),
    ("reduction_b", 1, Mixed, (_RESNET_REDUCTION_B,)),
    ("block8", 9, Residual, (_RESNET_8, 0.2, True)),
    ("block8_last", 1, Residual, (_RESNET_8, 1.0, False)),
    ("conv", 1, Mixed, (_RESNET_CONV,)),
)


_STRIDES_V4 = {
    "stem1": 2,
    "stem2": 4,
    "stem3": 4,
    "stem4": 8,
    "inception_a": 8,
    "reduction_a": 16,
    "inception_b": 16,
    "reduction_b": 32,
    "inception_c": 32,
}
_STRIDES_RESNET_V2 = {
    "stem1": 2,
    "stem2": 4,
    "stem3": 8,
    "mixed": 8,
    "block35": 8,
    "reduction_a": 16,
    "block17": 16,
    "reduction_b": 32,
    "block8": 32,
    "block8_last": 32,
    "conv": 32,
}


def _endpoints(
    stages: Stages, images: Array, train: bool, window: tuple[int, int] | None, remat: bool, conv_norm: Any
) -> dict[str, jax.Array]:
    """Endpoints: the last feature map of each of ``stages``, and ``pooled``."""
    nn.check_images(images, _SMALLEST)
    endpoints: dict[str, jax.Array] = {}
    x = images
    for stage, blocks, kind, fields in stages:
        block = nn.rematerialized(kind, remat)
        for i in range(blocks):
            name = stage if blocks == 1 else f"{stage}_{i + 1}"
            x = block(*fields, conv_norm=conv_norm, name=name)(x, train)
        endpoints[stage] = jnp.asarray(x)
    endpoints["pooled"] = nn.global_avg_pool(x, window)
    return endpoints


class InceptionV4(linen.Module):
    """Inception-v4 of the table above, for images ``[n, h, w, c]`` of at least 75 by 75 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem1, stem2, stem3, stem4, inception_a, reduction_a, inception_b, reduction_b, inception_c
    ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, less borders that are not padded, and pooled ``[n, 1536]``.
    Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of ``pooled`` is dropped.
      momentum, epsilon: of BatchNorm.
      remat: compute each block's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (299, 299, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES_V4

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.2
    momentum: float = 0.9
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        conv_norm = functools.partial(nn.ConvNorm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)
        endpoints = _endpoints(_V4, images, train, self.window, self.remat, conv_norm)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(endpoints["pooled"], train), endpoints


class InceptionResNetV2(linen.Module):
    """Inception-ResNet-v2 of the table above, for images ``[n, h, w, c]`` of at least 75 by 75 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints stem1, stem2, stem3, mixed, block35, reduction_a, block17, reduction_b, block8, block8_last, conv
    ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, less borders that are not padded, and pooled ``[n, 1536]``.
    Attributes and errors are those of ``InceptionV4``.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (299, 299, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES_RESNET_V2

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.2
    momentum: float = 0.99
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        conv_norm = functools.partial(
            nn.ConvNorm, use_scale=False, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        endpoints = _endpoints(_RESNET_V2, images, train, self.window, self.remat, conv_norm)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(endpoints["pooled"], train), endpoints


VARIANTS = {"inception_v4": InceptionV4, "inception_resnet_v2": InceptionResNetV2}
