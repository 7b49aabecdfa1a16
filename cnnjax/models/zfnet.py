"""ZFNet (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, Fig. 3): AlexNet with a
smaller, denser first convolution.

    name    features  size     kernel, stride, padding
    in             3  224×224
    conv1         96  110×110  7×7, 2, 1
    pool1         96   55×55   3×3, 2, rounded up
    conv2        256   26×26   5×5, 2, none
    pool2        256   13×13   3×3, 2, rounded up
    conv3        384   13×13   3×3, 1, 1
    conv4        384   13×13   3×3, 1, 1
    conv5        256   13×13   3×3, 1, 1
    pool5        256    6×6    3×3, 2, rounded up
    fc1         4096
    fc2         4096
    head        1000

A ReLU follows every layer but the head. Local response normalization follows pool1 and pool2; in AlexNet it precedes
them. The paper does not give its constants: they are AlexNet's, k = 2, alpha = 1e-4 over 5 channels, beta = 0.75.

Differences from the paper: it starts with kernels of scale 0.01; here they start as in He et al. 2015. It scales back
filters whose root mean square grows beyond 0.1; that belongs to the optimizer, and is not here.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.ops.window import Padding
from cnnjax.types import Array

_lrn = functools.partial(nn.local_response_norm, radius=2, k=2.0, alpha=1e-4, beta=0.75)
# Features, kernel size, stride, padding of conv1 to conv5.
_LAYERS: tuple[tuple[int, int, int, Padding], ...] = (
    (96, 7, 2, 1),
    (256, 5, 2, "VALID"),
    (384, 3, 1, 1),
    (384, 3, 1, 1),
    (256, 3, 1, 1),
)
_POOLED = (1, 2, 5)


_STRIDES = {
    "conv1": 2,
    "pool1": 4,
    "conv2": 8,
    "pool2": 16,
    "conv3": 16,
    "conv4": 16,
    "conv5": 16,
    "pool5": 32,
}


def _layer(module: linen.Module, x: Array, i: int, dtype: Dtype | None) -> tuple[jax.Array, jax.Array]:
    """Convolution i with ReLU: (its feature map, that map pooled and normalized: the input of the next layer).

    The layer becomes a part of ``module``, the caller, which ``linen.remat`` passes as the first argument.
    """
    features, kernel, strides, padding = _LAYERS[i - 1]
    y = x = nn.relu(nn.Conv(features, kernel, strides=strides, padding=padding, dtype=dtype, name=f"conv{i}")(x))
    if i in _POOLED:
        x = nn.max_pool(y, 3, strides=2, padding=nn.ceil_padding(y, 3, 2))
    return y, _lrn(x) if i < 3 else x


class ZFNet(linen.Module):
    """ZFNet of the table above, for images ``[n, h, w, c]`` with h, w ≥ 47 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5 ``[n, h, w, features]`` (convolutions after their
    ReLU, pool1 and pool2 normalized), pooled ``[n, 256]``, the average of pool5, and fc1, fc2 ``[n, 4096]``. The kernel
    of fc1 has a row for each value of pool5, so its shape depends on the size of the images. Training needs
    ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head, nor fc1 and fc2.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of fc1 or fc2 is dropped.
      remat: compute each layer's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
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
        nn.check_images(images, 47)
        layer = linen.remat(_layer, static_argnums=(2, 3)) if self.remat else _layer
        endpoints: dict[str, jax.Array] = {}
        x = images
        for i in range(1, len(_LAYERS) + 1):
            endpoints[f"conv{i}"], x = layer(self, x, i, self.dtype)
            if i in _POOLED:
                endpoints[f"pool{i}"] = x
        endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        dense = functools.partial(nn.Dense, 4096, dtype=self.dtype, kernel_init=linen.initializers.he_normal())
        x = endpoints["fc1"] = nn.relu(dense(self.window, name="fc1")(x))
        x = linen.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = endpoints["fc2"] = nn.relu(dense(1, name="fc2")(x))
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {"zfnet": ZFNet}
