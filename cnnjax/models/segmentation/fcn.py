"""FCN (Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, sec. 4, Fig. 3),
on VGG-16 or any base, and torchvision's FCN on a dilated ResNet.

    FCN-32s   score of the map of stride 32, upsampled 32 times
    FCN-16s   the same upsampled twice, plus a score of stride 16, upsampled 16 times
    FCN-8s    that upsampled twice, plus a score of stride 8, upsampled 8 times

Scores are 1×1 convolutions that start at zero, upsampling is transposed convolution that starts as bilinear
interpolation. On VGG-16 the maps are pool3, pool4 and fc2, whose 7×7 and 1×1 convolutions are the classifier's dense
layers. The paper pads images by 100 pixels and crops afterwards; here each layer pads, and poolings round up.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.models import resnet
from cnnjax.models.vgg import Block
from cnnjax.ops import resize
from cnnjax.types import Array, PyTree

_VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions and their features, by block
_zeros = linen.initializers.zeros_init()


class ConvolutionalVGG(linen.Module):
    """VGG-16 whose dense layers are convolutions: ``fc1`` 7×7 and ``fc2`` 1×1, each with ReLU and dropout.

    ``apply(variables, images, train=...)`` gives None and the endpoints pool1, …, pool5, fc1, fc2, of strides
    2, …, 32, 32, 32, ``[n, h / stride, w / stride, features]`` rounded up. Blocks and layers have VGG's names.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {**{f"pool{i}": 2**i for i in range(1, 6)}, "fc1": 32, "fc2": 32}

    dropout: float = 0.5
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[None, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        block = nn.rematerialized(Block, self.remat)
        endpoints: dict[str, jax.Array] = {}
        x: Array = images
        for i, (convs, features) in enumerate(_VGG16, start=1):
            # The block's own pooling rounds down and is not used, so it is not computed under jit.
            *_, last, _ = block(convs, features, self.dtype, name=f"block{i}")(x, train)
            x = endpoints[f"pool{i}"] = nn.max_pool(last, 2, padding=nn.ceil_padding(last, 2, 2))
        conv = functools.partial(nn.Conv, 4096, dtype=self.dtype, kernel_init=nn.he_normal_fan_out)
        for name, size in (("fc1", 7), ("fc2", 1)):
            x = nn.relu(conv(kernel_size=size, name=name)(x))
            x = endpoints[name] = linen.Dropout(self.dropout, deterministic=not train)(x)
        return None, endpoints


class FCN(linen.Module):
    """FCN on any base: scores of its maps of the ``skips``, coarse to fine, added up.

    Modules are ``base``, ``score32``, ``up32`` (to stride 16), ``score16``, …, and ``up`` to the size of the images.
    Endpoints are those of the base with ``score32``, … ``[n, h / stride, w / stride, num_classes]``, the sums.

    Attributes:
      base: a network without a head.
      num_classes: number of classes.
      skips: total strides, coarse to fine, each a multiple of the next: (32,), (32, 16) or (32, 16, 8) in the paper.
      dtype: type in which scores are computed; None: float32.
    """

    aux_weights: ClassVar[Mapping[str, float]] = {}

    base: linen.Module
    num_classes: int = 21
    skips: Sequence[int] = (32, 16, 8)
    dtype: Dtype | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the base's images."""
        return self.base.image_shape

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        endpoints = dict(endpoints)
        x: jax.Array | None = None
        for stride, finer, features in zip(
            self.skips, (*self.skips[1:], 1), nn.pyramid(self.base, endpoints, self.skips), strict=True
        ):
            score = nn.Conv(self.num_classes, 1, kernel_init=_zeros, dtype=self.dtype, name=f"score{stride}")(features)
            x = score if x is None else resize.fit(x, score.shape[1:3]) + score
            endpoints[f"score{stride}"] = x
            name = f"up{stride}" if finer > 1 else "up"
            x = nn.BilinearUp(self.num_classes, stride // finer, dtype=self.dtype, name=name)(x)
        assert x is not None
        return resize.fit(x, images.shape[1:3]).astype(jnp.float32), endpoints


def refined(fresh: PyTree, coarser: PyTree) -> PyTree:
    """Variables to train an FCN with finer skips (sec. 4.2 of the paper: 32s, then 16s, then 8s).

    Args:
      fresh: variables of the network with finer skips, whose new scores are zero.
      coarser: variables of one with the first of these skips; its base, scores and upsampling are taken, but ``up``,
        which upsampled to the size of the images.
    """
    params = {name: x for name, x in coarser["params"].items() if name != "up"}
    return {**fresh, **coarser, "params": {**fresh["params"], **params}}


class FCNHead(linen.Module):
    """Convolution 3×3 ``hidden`` to a quarter of the channels, dropout 0.1, and ``classifier`` 1×1 (torchvision's)."""

    num_classes: int
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        x = nn.ConvNorm(x.shape[-1] // 4, 3, padding=1, dtype=self.dtype, name="hidden")(x, train)
        x = linen.Dropout(0.1, deterministic=not train)(x)
        return nn.Conv(self.num_classes, 1, dtype=self.dtype, name="classifier")(x)


class DilatedSegmenter(linen.Module):
    """Head on the last map of a dilated base, interpolated to the size of the images; parent of torchvision's networks.

    Endpoints are those of the base and, with ``aux``, the logits ``aux`` of a head on the map before the last.

    Attributes:
      base: a network without a head, whose last maps have the same stride.
      num_classes: number of classes.
      aux: whether there is an auxiliary head.
      dtype: type in which the heads are computed; None: float32.
    """

    base: linen.Module
    num_classes: int = 21
    aux: bool = True
    dtype: Dtype | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the base's images."""
        return self.base.image_shape

    @property
    def aux_weights(self) -> Mapping[str, float]:
        """Weight of the auxiliary logits in the loss, as in torchvision's training."""
        return {"aux": 0.5} if self.aux else {}

    def head(self, x: Array, train: bool) -> jax.Array:
        """Logits of each position of the last map."""
        raise NotImplementedError

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        endpoints = dict(endpoints)
        *_, before, last = (name for name in self.base.strides)

        def full_size(logits: jax.Array) -> jax.Array:
            return resize.bilinear(logits.astype(jnp.float32), images.shape[1:3])

        logits = full_size(self.head(endpoints[last], train))
        if self.aux:
            endpoints["aux"] = full_size(FCNHead(self.num_classes, self.dtype, name="aux")(endpoints[before], train))
        return logits, endpoints


class DilatedFCN(DilatedSegmenter):
    """torchvision's FCN: ``FCNHead`` on a dilated ResNet; see ``DilatedSegmenter``."""

    @linen.nowrap
    def head(self, x: Array, train: bool) -> jax.Array:
        """Logits of each position of the last map."""
        return FCNHead(self.num_classes, self.dtype, name="head")(x, train)


def _fcn(
    base: linen.Module | None = None,
    num_classes: int = 21,
    skips: Sequence[int] = (32, 16, 8),
    remat: bool = False,
    dtype: Dtype | None = None,
) -> FCN:
    return FCN(base or ConvolutionalVGG(remat=remat, dtype=dtype), num_classes, tuple(skips), dtype)


def _dilated(
    depth: int,
    base: linen.Module | None = None,
    num_classes: int = 21,
    aux: bool = True,
    remat: bool = False,
    dtype: Dtype | None = None,
) -> DilatedFCN:
    base = base or resnet.ResNet(resnet.BLOCKS[depth], num_classes=None, output_stride=8, remat=remat, dtype=dtype)
    return DilatedFCN(base, num_classes, aux, dtype)


VARIANTS = {
    "fcn32s_vgg16": functools.partial(_fcn, skips=(32,)),
    "fcn16s_vgg16": functools.partial(_fcn, skips=(32, 16)),
    "fcn8s_vgg16": functools.partial(_fcn, skips=(32, 16, 8)),
    "fcn_resnet50": functools.partial(_dilated, 50),
    "fcn_resnet101": functools.partial(_dilated, 101),
}
