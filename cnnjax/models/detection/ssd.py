"""SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, sec. 2.1 and Fig. 2), on any base.

    SSD300 on VGG-16, image 300×300     map      boxes per cell
    base       conv4_3, normalized      38×38    4
               conv7                    19×19    6
    extra1     1×1 256, 3×3/2 512       10×10    6
    extra2     1×1 128, 3×3/2 256         5×5    6
    extra3     1×1 128, 3×3 256           3×3    4
    extra4     1×1 128, 3×3 256           1×1    4     8,732 in all

On each map a convolution 3×3 gives the classes of every default box, another its place. A ReLU follows every
convolution but these. Kernels of new layers start as Glorot's, uniform, as in the paper and torchvision.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from cnnjax import nn
from cnnjax.models.mobilenet import MobileNetV2
from cnnjax.models.vgg import Block
from cnnjax.ops import anchors
from cnnjax.ops import boxes as box_ops
from cnnjax.types import Array

Outputs = Mapping[str, jax.Array]

_glorot_uniform = linen.initializers.glorot_uniform()
_VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions and their features, by block


class L2Norm(linen.Module):
    """Scales each pixel's vector of channels to the length 1, then each channel by ``scale [c]`` (sec. 3.1).

    Source: Liu, Rabinovich & Berg 2016, ParseNet, sec. 3.3. ``x [..., c]`` → ``[..., c]`` in x's type.
    """

    start: float = 20.0

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", linen.initializers.constant(self.start), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.square(wide).sum(-1, keepdims=True)
        # The least square keeps the gradient of a pixel without any activation from being NaN.
        return (wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24)) * scale).astype(x.dtype)


class ReducedVGG(linen.Module):
    """VGG-16 as SSD uses it (sec. 3): its dense layers are convolutions, ``conv6`` 3×3 dilated by 6, ``conv7`` 1×1.

    pool3 rounds the size up, as Caffe did, and pool5 has a 3×3 window of stride 1. Kernels of both convolutions start
    anew; the blocks have VGG's names, so weights of ``vgg16`` are theirs. ``apply(variables, images, train=...)`` gives
    None, since there is no head, and the endpoints conv1_2, conv2_2, conv3_3, conv4_3, norm4_3, conv5_3, conv6, conv7.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (300, 300, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {
        **{"conv1_2": 1, "conv2_2": 2, "conv3_3": 4, "conv4_3": 8, "norm4_3": 8},
        **{"conv5_3": 16, "conv6": 16, "conv7": 16},
    }

    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[None, dict[str, jax.Array]]:
        nn.check_images(images, 32)
        endpoints: dict[str, jax.Array] = {}
        x = images
        for i, (convs, features) in enumerate(_VGG16, start=1):
            # The block's own pooling is not used, so it is not computed under jit.
            *_, last, _ = Block(convs, features, self.dtype, name=f"block{i}")(x, train)
            endpoints[f"conv{i}_{convs}"] = last
            if i == 5:
                x = nn.max_pool(last, 3, strides=1, padding=1)
            else:
                x = nn.max_pool(last, 2, padding=nn.ceil_padding(last, 2, 2) if i == 3 else "VALID")
            if i == 4:
                endpoints["norm4_3"] = L2Norm(name="norm")(last)
        conv = functools.partial(nn.Conv, 1024, dtype=self.dtype, kernel_init=_glorot_uniform)
        x = endpoints["conv6"] = nn.relu(conv(kernel_size=3, dilation=6, padding=6, name="conv6")(x))
        endpoints["conv7"] = nn.relu(conv(kernel_size=1, name="conv7")(x))
        return None, endpoints


class Extra(linen.Module):
    """Layers that add a smaller map: ``reduce`` 1×1 to half of the features, then ``conv`` 3×3 (sec. 2.1).

    ``[n, h, w, c]`` → ``[n, ⌈h / 2⌉, ⌈w / 2⌉, features]`` with stride 2; without padding, two pixels smaller, with 1.
    """

    features: int
    stride: int
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=_glorot_uniform)
        x = nn.relu(conv(self.features // 2, 1, name="reduce")(x))
        padding = 1 if self.stride > 1 else "VALID"
        return nn.relu(conv(self.features, 3, strides=self.stride, padding=padding, name="conv")(x))


class Head(linen.Module):
    """Convolutions 3×3 ``classes1``, ``boxes1``, … on each map: logits and codes of all default boxes, float32.

    Maps ``[n, h, w, c]`` → ``{"classes": [n, k, classes], "boxes": [n, k, 4]}``, in the order of ``default_boxes``.
    """

    per_cell: Sequence[int]
    classes: int
    dtype: Dtype | None

    @linen.compact
    def __call__(self, maps: Sequence[Array]) -> Outputs:
        parts: dict[str, list[jax.Array]] = {"classes": [], "boxes": []}
        for i, (x, count) in enumerate(zip(maps, self.per_cell, strict=True), start=1):
            for kind, values in (("classes", self.classes), ("boxes", 4)):
                conv = nn.Conv(
                    count * values, 3, padding=1, dtype=self.dtype, kernel_init=_glorot_uniform, name=f"{kind}{i}"
                )
                parts[kind].append(conv(x).astype(jnp.float32).reshape(x.shape[0], -1, values))
        return {kind: jnp.concatenate(each, axis=1) for kind, each in parts.items()}


class SSD(linen.Module):
    """SSD on a base, for images ``[n, h, w, c]``, float.

    ``apply(variables, images, train=...)`` gives ``{"classes": [n, k, num_classes + 1] logits, "boxes": [n, k, 4] codes
    of ops.boxes.encode_ssd}``, both float32 (None without a head), and the endpoints of the base with extra1, …. Logit
    0 is the background's, logit i + 1 that of class i.

    Attributes:
      base: a network with ``num_classes=None``.
      num_classes: classes of objects, without the background; None builds no head.
      strides: strides of the maps of the base that are used, see ``nn.pyramid``.
      extras: (features, stride) of each map more; with stride 1 it is not padded.
      default: scales and ratios of the default boxes for all maps; None: ``anchors.even_default_boxes``.
      image_shape: height, width and channels of the images that it is made for.
      variances: scale of the codes, see ``ops.boxes.encode_ssd``.
      dtype: type in which extras and head compute; None: float32. The base has its own.

    Raises:
      ValueError: the images are too small for the base or the extras.
    """

    head: ClassVar[str] = "ssd"
    parents: ClassVar[tuple[int, ...]] = ()  # its classes are no tree

    base: linen.Module
    num_classes: int | None = 20
    strides: Sequence[int] = (16, 32)
    extras: Sequence[tuple[int, int]] = ()
    default: anchors.DefaultBoxes | None = None
    image_shape: tuple[int, int, int] = (300, 300, 3)
    variances: tuple[float, float] = (0.1, 0.2)
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[Outputs | None, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        maps, endpoints = list(nn.pyramid(self.base, endpoints, self.strides)), dict(endpoints)
        for i, (features, stride) in enumerate(self.extras, start=1):
            if stride == 1 and min(maps[-1].shape[1:3]) < 3:
                raise ValueError(
                    f"expected larger images: extra{i}, 3×3 without padding, has a map of {maps[-1].shape[1:3]} pixels "
                    f"in images of {images.shape[1:3]}"
                )
            maps.append(Extra(features, stride, self.dtype, name=f"extra{i}")(maps[-1]))
            endpoints[f"extra{i}"] = maps[-1]
        if self.num_classes is None:
            return None, endpoints
        return Head(self._spec().per_cell, self.num_classes + 1, self.dtype, name="head")(maps), endpoints

    def default_boxes(self, image_shape: Sequence[int] | None = None) -> np.ndarray:
        """Default boxes ``[k, 4]`` of an image (height, width …; default: ``self.image_shape``), xyxy in pixels."""
        height, width = (image_shape or self.image_shape)[:2]
        return _default_boxes(self.clone(num_classes=None), (height, width, self.image_shape[2]))

    def decode(self, outputs: Outputs, image_shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
        """Boxes ``[n, k, 4]`` xyxy in pixels, cut to the image, and scores ``[n, k, num_classes]`` in 0…1.

        Args:
          outputs: of ``apply``.
          image_shape: height, width (, channels) of the images, in pixels.
        """
        height, width = image_shape[:2]
        found = box_ops.decode_ssd(outputs["boxes"], self.default_boxes(image_shape), self.variances)
        return box_ops.clip(found, height, width), jax.nn.softmax(outputs["classes"], axis=-1)[..., 1:]

    def _spec(self) -> anchors.DefaultBoxes:
        return (
            anchors.even_default_boxes(len(self.strides) + len(self.extras)) if self.default is None else self.default
        )


@functools.lru_cache(maxsize=64)
def _default_boxes(model: SSD, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Default boxes of a model without a head; nothing is computed to know the shapes of its maps."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    (_, endpoints), _ = jax.eval_shape(lambda *args: model.init_with_output(*args), keys, images)
    maps = list(nn.pyramid(model.base, endpoints, model.strides))
    maps += [endpoints[f"extra{i}"] for i in range(1, len(model.extras) + 1)]
    return anchors.default_boxes(model._spec(), image_shape, [each.shape[1:3] for each in maps])


def _ssd(
    base: linen.Module | None = None,
    num_classes: int | None = 20,
    strides: Sequence[int] = (16, 32),
    extras: Sequence[tuple[int, int]] = ((512, 2), (256, 2), (256, 2), (128, 2)),
    default: anchors.DefaultBoxes | None = None,
    image_shape: tuple[int, int, int] = (320, 320, 3),
    dtype: Dtype | None = None,
) -> SSD:
    """SSD on a base of one's own; by default on MobileNetV2, whose maps have 20, 10, 5, 3, 2, 1 pixels at 320."""
    base = base or MobileNetV2(num_classes=None, dtype=dtype)
    chosen = None if default is None else anchors.DefaultBoxes(*default)  # a card's are lists
    return SSD(base, num_classes, strides, extras, chosen, image_shape, dtype=dtype)


def _ssd300_vgg16(num_classes: int | None = 90, dtype: Dtype | None = None) -> SSD:
    """SSD300 of the table above, with the default boxes for COCO; its 90 classes are COCO's numbers from 1."""
    extras = ((512, 2), (256, 2), (256, 1), (256, 1))
    return SSD(ReducedVGG(dtype), num_classes, (8, 16), extras, anchors.SSD300, dtype=dtype)


VARIANTS = {"ssd": _ssd, "ssd300_vgg16": _ssd300_vgg16}
