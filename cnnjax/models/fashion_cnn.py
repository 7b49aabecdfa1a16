"""The chapter's CNN for Fashion-MNIST (Géron, "Hands-On Machine Learning", ch. 14, "CNN Architectures").

Convolutions with ReLU, whose features double after each max pooling, then dense layers with dropout:

    conv1   64 @ 7×7      pool1  2×2
    conv2a 128 @ 3×3      conv2b 128 @ 3×3      pool2  2×2
    conv3a 256 @ 3×3      conv3b 256 @ 3×3      pool3  2×2
    dense1 128, dropout   dense2 64, dropout    head   num_classes

1,413,834 parameters on 28×28×1; 92 % test accuracy on Fashion-MNIST. The head gives logits, not
probabilities: the softmax is in the loss. Kernels start as in Keras, Glorot uniform.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_SMALLEST = 8  # pixels: three poolings leave one
# Name, features as a multiple of the first layer's, kernel size.
_STAGES = (
    (("conv1", 1, 7),),
    (("conv2a", 2, 3), ("conv2b", 2, 3)),
    (("conv3a", 4, 3), ("conv3b", 4, 3)),
)
_STRIDES = {
    "conv1": 1,
    "pool1": 2,
    "conv2a": 2,
    "conv2b": 2,
    "pool2": 4,
    "conv3a": 4,
    "conv3b": 4,
    "pool3": 8,
}
_init = linen.initializers.glorot_uniform()


class FashionCNN(linen.Module):
    """The CNN of the table above, for images ``[n, h, w, c]`` with h, w ≥ 8 pixels, float in [0, 1].

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1, pool1, conv2a, conv2b, pool2, conv3a, conv3b, pool3 ``[n, h, w, features]``, pooled
    ``[n, features]``, the average of pool3, dense1 ``[n, 128]`` and dense2 ``[n, 64]``, each after its ReLU and before
    dropout. The kernel of dense1 has a row for each value of pool3, so its shape depends on the size of the images.
    Training needs ``rngs={"dropout": key}``.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      width: features of conv1.
      dropout: probability that a value of dense1 or dense2 is dropped.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = _STRIDES

    num_classes: int | None = 10
    window: tuple[int, int] | None = None
    width: int = 64
    dropout: float = 0.5
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, _SMALLEST)
        endpoints: dict[str, jax.Array] = {}
        x = images
        for i, stage in enumerate(_STAGES, start=1):
            for name, multiple, size in stage:
                conv = nn.Conv(multiple * self.width, size, dtype=self.dtype, kernel_init=_init, name=name)
                x = endpoints[name] = nn.relu(conv(x))
            x = endpoints[f"pool{i}"] = nn.max_pool(x, 2)
        endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        for name, units, window in (("dense1", 128, self.window), ("dense2", 64, 1)):
            x = endpoints[name] = nn.relu(nn.Dense(units, window, dtype=self.dtype, kernel_init=_init, name=name)(x))
            x = linen.Dropout(self.dropout, deterministic=not train)(x)
        if self.num_classes is None:
            return None, endpoints
        head = nn.Dense(self.num_classes, 1, dtype=jnp.float32, kernel_init=_init, name="head")
        return head(x), endpoints


# digits_cnn has half the features: enough for 8×8 digits, and four times faster.
VARIANTS = {"fashion_cnn": FashionCNN, "digits_cnn": functools.partial(FashionCNN, width=32)}
