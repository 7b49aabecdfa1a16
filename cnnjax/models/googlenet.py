"""GoogLeNet (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, Table 1), its form with BatchNorm, and the
chapter's SE-Inception, Fig. 14-20 (Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018, Fig. 2).

    conv1          7×7, 64, stride 2      then max pooling 3×3, stride 2, and local response normalization
    conv2_reduce   1×1, 64
    conv2          3×3, 192               then local response normalization and max pooling 3×3, stride 2

    inception      1×1      1×1, 3×3     1×1, 5×5     pooling, 1×1
    3a              64       96, 128      16,  32       32
    3b             128      128, 192      32,  96       64       then max pooling 3×3, stride 2
    4a             192       96, 208      16,  48       64       aux1
    4b             160      112, 224      24,  64       64
    4c             128      128, 256      24,  64       64
    4d             112      144, 288      32,  64       64       aux2
    4e             256      160, 320      32, 128      128       then max pooling 3×3, stride 2
    5a             256      160, 320      32, 128      128
    5b             384      192, 384      48, 128      128
    head           global average, dropout, num_classes

    aux            average pooling to 4×4, conv 1×1 128, dense 1024, dropout, num_classes

The four branches of a module are joined in this order. Max pooling rounds its sizes up, as Caffe's.

``googlenet`` is the network of 2014: convolutions with biases and ReLU, no BatchNorm. The constants of its local
response normalization are the chapter's, which are Caffe's too. The auxiliary heads average 5×5 windows with stride 3,
which gives 4×4 values for 224×224 images. For other sizes, where it may not, and always in ``googlenet_bn``, the
feature map is divided evenly into 4×4 windows, so that no dense layer depends on the size of the images.

``googlenet_bn`` is torchvision's: BatchNorm in place of biases and local response normalization, 3×3 kernels in the 5×5
branches, and 2×2 windows in the last max pooling. Its published weights expect channels in −1…1; images are not scaled
here. ``se_googlenet`` is ``googlenet_bn`` with squeeze-and-excitation at the end of every module; its authors have
published no weights.

Kernels start He normal (the papers do not say how), those of the heads' last layers with deviation 0.01.
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

# Features of the convolutions: 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; after pooling.
_MODULES = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_AUX = {"inception4a": "aux1", "inception4d": "aux2"}


_AUX_WEIGHTS = {"aux1": 0.3, "aux2": 0.3}
_STRIDES = {
    "conv1": 2,
    "conv2": 4,
    **{f"inception3{letter}": 8 for letter in "ab"},
    **{f"inception4{letter}": 16 for letter in "abcde"},
    **{f"inception5{letter}": 32 for letter in "ab"},
}


class ConvReLU(linen.Module):
    """Convolution ``conv`` with bias, then ReLU; called with ``(x, train)`` as ``nn.ConvNorm``."""

    features: int
    kernel_size: int
    strides: int = 1
    padding: int | str = "SAME"
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        layer = nn.Conv(self.features, self.kernel_size, self.strides, self.padding, dtype=self.dtype, name="conv")
        return nn.relu(layer(x))


class Inception(linen.Module):
    """Four branches side by side, ``[n, h, w, c]`` → ``[n, h, w, sum]``.

    Attributes:
      features: of the convolutions, as in the table.
      large: kernel size of the 5×5 branch.
      reduction: of squeeze-and-excitation after the branches; None: no squeeze-and-excitation.
      conv: makes the layers.
    """

    features: tuple[int, int, int, int, int, int]
    large: int
    reduction: int | None
    conv: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        one, reduce3, three, reduce5, five, project = self.features
        middle = self.conv(reduce3, 1, name="reduce3x3")(x, train)
        large = self.conv(reduce5, 1, name="reduce5x5")(x, train)
        branches = [
            self.conv(one, 1, name="conv1x1")(x, train),
            self.conv(three, 3, name="conv3x3")(middle, train),
            self.conv(five, self.large, name="conv5x5")(large, train),
            self.conv(project, 1, name="project")(nn.max_pool(x, 3, strides=1, padding=1), train),
        ]
        y = jnp.concatenate(branches, axis=-1)
        if self.reduction is not None:
            y = nn.SqueezeExcite(self.reduction, dtype=self.conv.keywords["dtype"], name="se")(y)
        return y


class AuxiliaryHead(linen.Module):
    """Float32 logits ``[n, num_classes]`` from a feature map within the network.

    With ``windows`` it averages 5×5 windows with stride 3 where these give 4×4 values, else 4×4 even windows.
    """

    num_classes: int
    dropout: float
    windows: bool
    conv: Any

    @linen.compact
    def __call__(self, x: Array, train: bool) -> jax.Array:
        if self.windows and all(14 <= size <= 16 for size in x.shape[1:3]):
            x = nn.avg_pool(x, 5, strides=3)
        else:
            x = nn.adaptive_avg_pool(x, 4)
        x = self.conv(128, 1, name="conv")(x, train)
        x = x.reshape(x.shape[0], -1)
        init = linen.initializers.he_normal()
        x = nn.relu(linen.Dense(1024, dtype=self.conv.keywords["dtype"], kernel_init=init, name="dense")(x))
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train)


def _pool_half(x: Array, window: int) -> jax.Array:
    """Max pooling with stride 2 that rounds sizes up."""
    return nn.max_pool(x, window, strides=2, padding=nn.ceil_padding(x, window, 2))


class GoogLeNet(linen.Module):
    """GoogLeNet of the table above, for images ``[n, h, w, c]`` with h, w ≥ 31 pixels (15 with ``batch_norm``), float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1, conv2, inception3a, inception3b, inception4a, inception4b, inception4c, inception4d, inception4e,
    inception5a, inception5b ``[n, h / 2 … h / 32, w / 2 … w / 32, features]`` and pooled ``[n, 1024]``. In training
    with ``aux`` there are also the logits aux1, aux2 ``[n, num_classes]`` float32, whose losses are added with the
    weights ``aux_weights``. Training needs ``rngs={"dropout": key}``.

    Attributes:
      batch_norm: BatchNorm, kernels and windows of torchvision's.
      reduction: of squeeze-and-excitation; None: no squeeze-and-excitation.
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      aux: build the auxiliary heads, where there is a head.
      dropout: probability that a value before the head's last layer is dropped.
      aux_dropout: probability that a value before the last layer of an auxiliary head is dropped.
      momentum, epsilon: of BatchNorm.
      remat: compute each module's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    batch_norm: bool = False
    reduction: int | None = None
    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    aux: bool = True
    dropout: float = 0.4
    aux_dropout: float = 0.7
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
        nn.check_images(images, 15 if self.batch_norm else 31)
        conv: Any = functools.partial(ConvReLU, dtype=self.dtype)
        if self.batch_norm:
            conv = functools.partial(nn.ConvNorm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)
        endpoints: dict[str, jax.Array] = {}
        x = self._stem(images, train, conv, endpoints)
        inception = nn.rematerialized(Inception, self.remat)
        for name, features in _MODULES.items():
            if name == "inception4a":
                x = _pool_half(x, 3)
            elif name == "inception5a":
                x = _pool_half(x, 2 if self.batch_norm else 3)
            layer = inception(features, 3 if self.batch_norm else 5, self.reduction, conv, name=name)
            x = endpoints[name] = layer(x, train)
            self._auxiliary(name, x, train, conv, endpoints)
        x = endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints

    def _stem(self, images: Array, train: bool, conv: Any, endpoints: dict[str, jax.Array]) -> jax.Array:
        """Layers before the first module."""
        norm = (lambda x: x) if self.batch_norm else nn.local_response_norm
        x = endpoints["conv1"] = conv(64, 7, strides=2, padding=3, name="conv1")(images, train)
        x = conv(64, 1, name="conv2_reduce")(norm(_pool_half(x, 3)), train)
        x = endpoints["conv2"] = conv(192, 3, name="conv2")(x, train)
        return _pool_half(norm(x), 3)

    def _auxiliary(self, name: str, x: Array, train: bool, conv: Any, endpoints: dict[str, jax.Array]) -> None:
        """Auxiliary head after module ``name``, where there is one: parameters always, the endpoint in training."""
        if name not in _AUX or not self.aux or self.num_classes is None or not (train or self.is_initializing()):
            return
        head = AuxiliaryHead(self.num_classes, self.aux_dropout, not self.batch_norm, conv, name=_AUX[name])
        logits = head(x, train)
        if train:
            endpoints[_AUX[name]] = logits


VARIANTS = {
    "googlenet": GoogLeNet,
    "googlenet_bn": functools.partial(GoogLeNet, batch_norm=True, dropout=0.2),
    "se_googlenet": functools.partial(GoogLeNet, batch_norm=True, reduction=16, dropout=0.2),
}
