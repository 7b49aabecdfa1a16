"""VGG (Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, Table 1,
columns D and E).

             features   convolutions 3×3, stride 1      VGG16   VGG19
    block1         64   conv1_1 …                           2       2
    block2        128   conv2_1 …                           2       2
    block3        256   conv3_1 …                           3       4
    block4        512   conv4_1 …                           3       4
    block5        512   conv5_1 …                           3       4
    fc1          4096
    fc2          4096
    head         1000

Each block ends in max pooling 2×2 with stride 2. A ReLU follows every layer but the head; dropout with probability 0.5
follows fc1 and fc2 (Keras' has none).

Kernels start as torchvision's, He normal by fan-out, those of dense layers normal of deviation 0.01. The paper starts
the deep networks from the weights of a shallower one, and remarks that Glorot's start makes this unnecessary.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.types import Array

_FEATURES = (64, 128, 256, 512, 512)  # by block
_D, _E = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions by block


class Block(linen.Module):
    """``convs`` convolutions 3×3 with ReLU, then max pooling 2×2; returns each feature map, the pooled one last."""

    convs: int
    features: int
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array, train: bool) -> list[jax.Array]:
        conv = functools.partial(nn.Conv, self.features, 3, dtype=self.dtype, kernel_init=nn.he_normal_fan_out)
        outputs = []
        for i in range(self.convs):
            x = nn.relu(conv(name=f"conv{i + 1}")(x))
            outputs.append(x)
        return [*outputs, nn.max_pool(x, 2)]


class VGG(linen.Module):
    """VGG of the table above, for images ``[n, h, w, c]`` with h, w ≥ 32 pixels, float.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints conv1_1, conv1_2, pool1, conv2_1, conv2_2, pool2, conv3_1, conv3_2, conv3_3, pool3, conv4_1, conv4_2,
    conv4_3, pool4, conv5_1, conv5_2, conv5_3, pool5, in VGG19 also conv3_4, conv4_4, conv5_4, all
    ``[n, h, w, features]`` (convolutions after their ReLU), pooled ``[n, 512]``, the average of pool5, and fc1, fc2
    ``[n, 4096]``. The kernel of fc1 has a row for each value of pool5, so its shape depends on the size of the images,
    as in Keras. Training needs ``rngs={"dropout": key}``.

    Attributes:
      convs: convolutions of each block.
      num_classes: classes of the head; None builds no head, nor fc1 and fc2.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: the whole feature map.
      dropout: probability that a value of fc1 or fc2 is dropped.
      remat: compute each block's activations again in the backward pass.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: the images are smaller.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}

    convs: Sequence[int]
    num_classes: int | None = 1000
    window: tuple[int, int] | None = None
    dropout: float = 0.5
    remat: bool = False
    dtype: Dtype | None = None

    @property
    def strides(self) -> Mapping[str, int]:
        """Endpoint → total stride: 2^(i−1) in block i, and 2^i after its pooling."""
        return {
            key: stride
            for i, convs in enumerate(self.convs, start=1)
            for key, stride in (*((f"conv{i}_{j}", 2 ** (i - 1)) for j in range(1, convs + 1)), (f"pool{i}", 2**i))
        }

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        nn.check_images(images, 32)
        block = nn.rematerialized(Block, self.remat)
        endpoints: dict[str, jax.Array] = {}
        x = images
        for i, (convs, features) in enumerate(zip(self.convs, _FEATURES, strict=True), start=1):
            *outputs, x = block(convs, features, self.dtype, name=f"block{i}")(x, train)
            endpoints |= {f"conv{i}_{j}": y for j, y in enumerate(outputs, start=1)}
            endpoints[f"pool{i}"] = x
        endpoints["pooled"] = nn.global_avg_pool(x, self.window)
        if self.num_classes is None:
            return None, endpoints
        dense = functools.partial(nn.Dense, 4096, dtype=self.dtype, kernel_init=linen.initializers.normal(0.01))
        x = endpoints["fc1"] = nn.relu(dense(self.window, name="fc1")(x))
        x = linen.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = endpoints["fc2"] = nn.relu(dense(1, name="fc2")(x))
        return nn.Head(self.num_classes, self.dropout, name="head")(x, train), endpoints


VARIANTS = {
    "vgg16": functools.partial(VGG, _D),
    "vgg19": functools.partial(VGG, _E),
}
