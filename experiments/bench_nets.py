"""The networks that ``bench.py`` times and that no model file has yet, written plainly.

They follow torchvision's (ResNet-50, MobileNetV2, VGG-16) and timm's (Xception), whose parameter counts they have:
25,557,032, 3,504,872, 138,357,544 and 22,855,952. Without a bias before BatchNorm, padding as torch's.
"""

import functools

import flax.linen as linen
import jax

from cnnjax import nn
from cnnjax.models.fashion_cnn import FashionCNN
from cnnjax.types import Array

_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class ResNet50(linen.Module):
    """He et al. 2015, with the stride in the 3×3 convolution."""

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)

        def norm(x: Array) -> jax.Array:
            return _norm()(x, use_running_average=not train)

        x = linen.relu(norm(conv(64, 7, strides=2, padding=3)(x)))
        x = nn.max_pool(x, 3, strides=2, padding=1)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                maps = 64 * 2**stage
                y = linen.relu(norm(conv(maps, 1)(x)))
                y = linen.relu(norm(conv(maps, 3, strides=stride, padding=1)(y)))
                y = norm(conv(4 * maps, 1)(y))
                x = norm(conv(4 * maps, 1, strides=stride)(x)) if block == 0 else x
                x = linen.relu(x + y)
        return linen.Dense(1000)(nn.global_avg_pool(x))


class MobileNetV2(linen.Module):
    """Sandler et al. 2018, Table 2."""

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)

        def norm(x: Array) -> jax.Array:
            return _norm()(x, use_running_average=not train)

        x = linen.relu6(norm(conv(32, 3, strides=2, padding=1)(x)))
        table = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expansion, maps, blocks, first in table:
            for block in range(blocks):
                y, stride = x, first if block == 0 else 1
                if expansion > 1:
                    y = linen.relu6(norm(conv(expansion * x.shape[-1], 1)(y)))
                y = linen.relu6(norm(nn.DepthwiseConv(3, strides=stride, padding=1, use_bias=False)(y)))
                y = norm(conv(maps, 1)(y))
                x = x + y if x.shape == y.shape else y
        x = linen.relu6(norm(conv(1280, 1)(x)))
        x = linen.Dropout(0.2, deterministic=not train)(nn.global_avg_pool(x))
        return linen.Dense(1000)(x)


class Xception(linen.Module):
    """Chollet 2017, Fig. 5."""

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        def norm(x: Array) -> jax.Array:
            return _norm()(x, use_running_average=not train)

        def separable(maps: int, x: Array) -> jax.Array:
            return norm(nn.SeparableConv(maps, 3, padding=1, use_bias=False)(x))

        x = linen.relu(norm(nn.Conv(32, 3, strides=2, padding="VALID", use_bias=False)(x)))
        x = linen.relu(norm(nn.Conv(64, 3, padding="VALID", use_bias=False)(x)))
        for i, maps in enumerate((128, 256, 728)):
            y = separable(maps, linen.relu(x) if i else x)
            y = separable(maps, linen.relu(y))
            y = nn.max_pool(y, 3, strides=2, padding=1)
            x = y + norm(nn.Conv(maps, 1, strides=2, use_bias=False)(x))
        for _ in range(8):
            y = x
            for _ in range(3):
                y = separable(728, linen.relu(y))
            x = x + y
        y = separable(728, linen.relu(x))
        y = separable(1024, linen.relu(y))
        y = nn.max_pool(y, 3, strides=2, padding=1)
        x = y + norm(nn.Conv(1024, 1, strides=2, use_bias=False)(x))
        x = linen.relu(separable(1536, x))
        x = linen.relu(separable(2048, x))
        return linen.Dense(1000)(nn.global_avg_pool(x))


class VGG16(linen.Module):
    """Simonyan & Zisserman 2014, configuration D."""

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        for maps, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convs):
                x = linen.relu(nn.Conv(maps, 3)(x))
            x = nn.max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = linen.Dropout(0.5, deterministic=not train)(linen.relu(linen.Dense(4096)(x)))
        return linen.Dense(1000)(x)


class Fashion(linen.Module):
    """The chapter's CNN, its logits alone."""

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        logits, _ = FashionCNN(10, name="model")(x, train=train)
        return logits


# Name → (module, image shape, batch size). Batches are what a laptop with 8 GB trains in comfort.
NETS = {
    "fashion_cnn": (Fashion, (28, 28, 1), 64),
    "vgg16": (VGG16, (224, 224, 3), 4),
    "resnet50": (ResNet50, (224, 224, 3), 8),
    "mobilenet_v2": (MobileNetV2, (224, 224, 3), 8),
    "xception": (Xception, (299, 299, 3), 8),
}
