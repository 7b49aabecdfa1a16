"""Inception v3 (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, Table 1).

    conv1       3×3, 32, stride 2, no padding
    conv2       3×3, 32, no padding
    conv3       3×3, 64                          then max pooling 3×3, stride 2
    conv4       1×1, 80
    conv5       3×3, 192, no padding             then max pooling 3×3, stride 2
    mixed5b–d   3 modules of Fig. 5, at 35×35: 1×1; 1×1, 5×5; 1×1, 3×3, 3×3; average pooling, 1×1
    mixed6a     grid reduction, Fig. 10: 3×3; 1×1, 3×3, 3×3; max pooling, all with stride 2
    mixed6b–e   4 modules of Fig. 6, at 17×17: 1×1; 1×7, 7×1; that pair twice; average pooling, 1×1
    aux1        average pooling 5×5, stride 3; 1×1, 128; 5×5, 768, no padding; global average; num_classes
    mixed7a     grid reduction
    mixed7b–c   2 modules of Fig. 7, at 8×8: 1×1; 1×3 beside 3×1; 3×3, 1×3 beside 3×1; average pooling, 1×1
    head        global average, dropout, num_classes

BatchNorm and ReLU follow every convolution. This is the network of the authors' code, which torchvision and Keras have
too. The paper's table has 3×3 convolutions in place of conv4 and the second pooling, its Fig. 5 a 3×3 in place of the
5×5.

The defaults are torchvision's. In Keras', average pooling does not count the padding (``count_include_pad=False``),
there is no auxiliary head and no dropout, and BatchNorm has no scale, which amounts to a scale of one. Published
weights expect channels in −1…1; images are not scaled here.

The windows of the auxiliary head fit images of 299 pixels and more. For smaller images, which torchvision refuses, its
feature map is divided evenly into 5×5 windows.

Kernels start He normal (the authors' code: normal with deviation 0.1), those of the heads' last layers with
deviation 0.01.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops.window import Ints
from cnnjax.types import Array

# Features, then the kernel; with more than one kernel as many convolutions of the same input, side by side.
Layer = tuple[int, *tuple[Ints, ...]]
Branches = Sequence[Sequence[Layer]]


class Inception(linen.Module):
    """Chains of convolutions side by side, and a pooling: ``[n, h, w, c]`` → ``[n, h, w, sum]``.

    Layer ``branch{i}_{j}`` is the j-th of branch i, with a letter "a", "b" where two are side by side.

    Attributes:
      branches: the chains.
      project: features of the 1×1 convolution after average pooling. None is a grid reduction: the last convolution of
        each branch has stride 2 and no padding, and so has max pooling in place of average pooling.
      count_include_pad: average pooling counts its padding.
      conv_norm: makes the layers.
    """

    branches: Branches
    project: int | None
    count_include_pad: bool
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        joined = [self._branch(i, layers, x, train) for i, layers in enumerate(self.branches, start=1)]
        if self.project is None:
            joined.append(nn.max_pool(x, 3, strides=2))
        else:
            y = nn.avg_pool(x, 3, strides=1, padding=1, count_include_pad=self.count_include_pad)
            joined.append(self.conv_norm(self.project, 1, name="project")(y, train))
        return jnp.concatenate(joined, axis=-1)

    def _branch(self, i: int, layers: Sequence[Layer], x: Array, train: bool) -> jax.Array:
        y = jnp.asarray(x)
        for j, (features, *kernels) in enumerate(layers, start=1):
            halve = self.project is None and j == len(layers)
            conv = functools.partial(
                self.conv_norm, features, strides=2 if halve else 1, padding="VALID" if halve else "SAME"
            )
            letters = "ab" if len(kernels) > 1 else ("",)
            named = zip(letters, kernels, strict=True)
            y = jnp.concatenate([conv(k, name=f"branch{i}_{j}{letter}")(y, train) for letter, k in named], axis=-1)
        return y


def _fig6(features: int) -> Branches:
    """Branches of a module with factorized 7×7 convolutions of ``features`` features each."""
    wide, high = (1, 7), (7, 1)
    return (
        ((192, 1),),
        ((features, 1), (features, wide), (192, high)),
        ((features, 1), (features, high), (features, wide), (features, high), (192, wide)),
    )


_FIG5: Branches = (((64, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)))
_FIG7: Branches = (((320, 1),), ((384, 1), (384, (1, 3), (3, 1))), ((448, 1), (384, 3), (384, (1, 3), (3, 1))))
_MODULES: dict[str, tuple[Branches, int | None]] = {
    "mixed5b": (_FIG5, 32),
    "mixed5c": (_FIG5, 64),
    "mixed5d": (_FIG5, 64),
    "mixed6a": ((((384, 3),), ((64, 1), (96, 3), (96, 3))), None),
    "mixed6b": (_fig6(128), 192),
    "mixed6c": (_fig6(160), 192),
    "mixed6d": (_fig6(160), 192),
    "mixed6e": (_fig6(192), 192),
    "mixed7a": ((((192, 1), (320, 3)), ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))), None),
    "mixed7b": (_FIG7, 192),
    "mixed7c": (_FIG7, 192),
}


_AUX_WEIGHTS = {"aux1": 0.4}  # the authors' code
_STRIDES = {
    "conv3": 2,
    "conv5": 4,
    **{f"mixed5{letter}": 8 for letter in "bcd"},
    **{f"mixed6{letter}": 16 for letter in "abcde"},
    **{f"mixed7{letter}": 32 for letter in "abc"},
}


class AuxiliaryHead(linen.Module):
    """Float32 logits ``[n, num_classes]`` from a feature map within the network."""

    num_classes: int
    conv_norm: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        # From fewer than 17 pixels the pooling makes fewer averages than the 5×5 convolution needs.
        x = nn.avg_pool(x, 5, strides=3) if min(x.shape[1:3]) >= 17 else nn.adaptive_avg_pool(x, 5)
        x = self.conv_norm(128, 1, name="conv1")(x, train)
        x = self.conv_norm(768, 5, padding="VALID", name="conv2")(x, train)
        return nn.Head(self.num_classes, name="head")(nn.global_avg_pool(x), train)


class InceptionV3(linen.Module):
    """Inception v3 of the table above, for images ``[n, h, w, c]`` with h, w ≥ 75 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv3, conv5, mixed5b, mixed5c, mixed5d, mixed6a, mixed6b, mixed6c, mixed6d, mixed6e, mixed7a, mixed7b,
    mixed7c ``[n, h / 2 … h / 32, w / 2 … w / 32, features]``, less borders that are not padded, and pooled
    ``[n, 2048]``. In training with ``aux`` there are also the logits aux1 ``[n, num_classes]`` float32, whose loss is
    added with the weight in ``aux_weights``. Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      aux: build the auxiliary head, where there is a head.
      dropout: probability that a value of ``pooled`` is dropped.
      count_include_pad: average pooling counts its padding.
      momentum, epsilon: of BatchNorm.
      remat: compute each module's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (299, 299, 3)
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    aux: bool = True
    dropout: float = 0.5
    count_include_pad: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-3
    remat: bool = False
    dtype: Dtype | None = None

    @property
    def aux_weights(self) -> Mapping[str, float]:
        """Endpoint of an auxiliary head → weight of its loss; empty without ``aux`` or without a head."""
        return _AUX_WEIGHTS if self.aux and self.num_classes is not None else {}

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 75)
        conv_norm = functools.partial(nn.ConvNorm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)
        endpoints: dict[str, jax.Array] = {}
        x = conv_norm(32, 3, strides=2, padding="VALID", name="conv1")(images, train)
        x = conv_norm(32, 3, padding="VALID", name="conv2")(x, train)
        x = endpoints["conv3"] = conv_norm(64, 3, name="conv3")(x, train)
        x = conv_norm(80, 1, name="conv4")(nn.max_pool(x, 3, strides=2), train)
        x = endpoints["conv5"] = conv_norm(192, 3, padding="VALID", name="conv5")(x, train)
        x = nn.max_pool(x, 3, strides=2)
        inception = nn.rematerialized(Inception, self.remat)
        for name, (branches, project) in _MODULES.items():
            layer = inception(branches, project, self.count_include_pad, conv_norm, name=name)
            x = endpoints[name] = layer(x, train)
        # Variables do not depend on ``train``, so they always have the parameters of the auxiliary head.
        if self.aux and self.num_classes is not None and (train or self.is_initializing()):
            logits = AuxiliaryHead(self.num_classes, conv_norm, name="aux1")(endpoints["mixed6e"], train)
            if train:
                endpoints["aux1"] = logits
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {"inception_v3": InceptionV3}
