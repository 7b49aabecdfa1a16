"""AlexNet (Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS
2012, section 3.5 and Fig. 2; the chapter's Table 14-2), and torchvision's (Krizhevsky, "One weird trick for
parallelizing convolutional neural networks", 2014).

    name    features  size     kernel, stride, padding     torchvision
    in             3  227×227                              224×224
    conv1         96   55×55   11×11, 4, none              64 features, padding 2
    pool1         96   27×27   3×3, 2, none
    conv2        256   27×27   5×5, 1, same                192 features
    pool2        256   13×13   3×3, 2, none
    conv3        384   13×13   3×3, 1, same
    conv4        384   13×13   3×3, 1, same                256 features
    conv5        256   13×13   3×3, 1, same
    pool5        256    6×6    3×3, 2, none                then averaged to 6×6, whatever the size
    fc1         4096
    fc2         4096
    head        1000

A ReLU follows every layer but the head. Between the ReLU and the pooling of conv1 and conv2 (the table's C1 and C3) is
local response normalization: in ``alexnet`` with the chapter's k = 1, alpha = 2e-5, in ``alexnet_two_tower`` with the
paper's k = 2, alpha = 1e-4, both over 5 channels with beta = 0.75 and the sum not divided; torchvision's has none.
Dropout with probability 0.5 follows fc1 and fc2; in torchvision's it precedes them instead.

In ``alexnet_two_tower`` conv2, conv4 and conv5 have two groups, as on the paper's two GPUs: each half of the features
sees one half of the channels. The normalization goes over all channels, as the paper's equation (and Caffe): where the
halves meet, its window has channels of both halves. The paper says 224×224 for its input, but only 227×227 gives 55×55.

Kernels start as in He et al. 2015, biases at zero. The paper starts with kernels normal of deviation 0.01 and with
biases of one in conv2, conv4, conv5, fc1 and fc2, for pixels of ±128: hardly any signal of images with unit deviation
would get through.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_KERNELS = (11, 5, 3, 3, 3)
_GROUPED = (2, 4, 5)  # convolutions that have two groups in the two-tower network
_STRIDES = {
    "conv1": 4,
    "pool1": 8,
    "conv2": 8,
    "pool2": 16,
    "conv3": 16,
    "conv4": 16,
    "conv5": 16,
    "pool5": 32,
}
_paper_lrn = functools.partial(nn.local_response_norm, radius=2, k=2.0, alpha=1e-4, beta=0.75)


def _layer(module: linen.Module, x: Array, conv: Callable, norm: Callable | None, pool: bool) -> tuple[jax.Array, ...]:
    """Convolution with ReLU: (its feature map, that map normalized and pooled: the input of the next layer).

    The layer becomes a part of ``module``, the caller, which ``linen.remat`` passes as the first argument.
    """
    y = nn.relu(conv()(x))
    x = y if norm is None else norm(y)
    return y, nn.max_pool(x, 3, strides=2) if pool else x


def _convolutions(
    module: linen.Module,
    images: Array,
    convs: Sequence[Callable],
    norm: Callable | None,
    window: tuple[int, int] | None,
    remat: bool,
) -> dict[str, jax.Array]:
    """Endpoints from conv1 to pool5 and ``pooled``: ``convs`` make the layers, ``norm`` follows the first two."""
    layer = linen.remat(_layer, static_argnums=(2, 3, 4)) if remat else _layer
    endpoints: dict[str, jax.Array] = {}
    x = images
    for i, conv in enumerate(convs, start=1):
        pool = i in (1, 2, 5)
        named = functools.partial(conv, name=f"conv{i}")
        endpoints[f"conv{i}"], x = layer(module, x, named, norm if i < 3 else None, pool)
        if pool:
            endpoints[f"pool{i}"] = x
    endpoints["pooled"] = nn.global_avg_pool(x, window)
    return endpoints


class AlexNet(linen.Module):
    """AlexNet of the table above, for images ``[n, h, w, c]`` with h, w ≥ 67 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5 ``[n, h, w, features]`` (convolutions after their
    ReLU), pooled ``[n, 256]``, the average of pool5, and fc1, fc2 ``[n, 4096]``. The kernel of fc1 has a row for each
    value of pool5, so its shape depends on the size of the images. Training needs ``rngs={"dropout": key}``.

    Attributes:
      two_tower: the groups and the normalization of 2012.
      num_classes: classes of the head; None builds no head, nor fc1 and fc2.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of fc1 or fc2 is dropped.
      remat: compute each layer's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (227, 227, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    two_tower: bool = False
    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.5
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 67)
        convs = [
            functools.partial(
                nn.Conv,
                features,
                kernel,
                strides=4 if i == 1 else 1,
                padding="VALID" if i == 1 else "SAME",
                groups=2 if self.two_tower and i in _GROUPED else 1,
                dtype=self.dtype,
            )
            for i, (features, kernel) in enumerate(zip((96, 256, 384, 384, 256), _KERNELS, strict=True), start=1)
        ]
        norm = _paper_lrn if self.two_tower else nn.local_response_norm
        endpoints = _convolutions(self, images, convs, norm, self.window, self.remat)
        if self.num_classes is None:
            return None, endpoints
        dense = functools.partial(nn.Dense, 4096, dtype=self.dtype, kernel_init=linen.initializers.he_normal())
        x = endpoints["fc1"] = nn.relu(dense(self.window, name="fc1")(endpoints["pool5"]))
        x = linen.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = endpoints["fc2"] = nn.relu(dense(1, name="fc2")(x))
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


class AlexNetTorchvision(linen.Module):
    """AlexNet as in torchvision, see the table above, for images ``[n, h, w, c]`` with h, w ≥ 63 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, pooled, fc1, fc2 of ``AlexNet``. The kernel of fc1
    has the same shape for images of any size. Attributes and errors are those of ``AlexNet``.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.5
    remat: bool = False
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 63)
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        convs = [
            functools.partial(conv, features, kernel, strides=4 if i == 0 else 1, padding=2 if i == 0 else "SAME")
            for i, (features, kernel) in enumerate(zip((64, 192, 384, 256, 256), _KERNELS, strict=True))
        ]
        endpoints = _convolutions(self, images, convs, None, self.window, self.remat)
        if self.num_classes is None:
            return None, endpoints
        x = endpoints["pool5"] if self.window else nn.adaptive_avg_pool(endpoints["pool5"], 6)
        for name, window in (("fc1", self.window), ("fc2", 1)):
            x = linen.Dropout(self.dropout, deterministic=not train, name=f"dropout_{name}")(x)
            dense = nn.Dense(4096, window, dtype=self.dtype, kernel_init=linen.initializers.he_normal(), name=name)
            x = endpoints[name] = nn.relu(dense(x))
        return nn.Head(self.num_classes, name="head")(x, train), endpoints


VARIANTS = {
    "alexnet": AlexNet,
    "alexnet_two_tower": functools.partial(AlexNet, two_tower=True),
    "alexnet_torchvision": AlexNetTorchvision,
}
