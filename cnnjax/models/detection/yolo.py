"""YOLO: detectors that look once (YOLOv2: Redmon & Farhadi, CVPR 2017; YOLOv3: Redmon & Farhadi 2018).

                  YOLOv2                          YOLOv3                            YOLOv3-tiny
    base      Darknet-19                      Darknet-53                        7 convolutions, pooling
    grids         stride 32, passthrough of 16    strides 32, 16, 8                 strides 32, 16
    anchors       5, by k-means on VOC            9, 3 by grid, by k-means on COCO  6, 3 by grid
    a cell gives  5 · (5 + 20) = 125 on VOC       3 · (5 + 80) = 255 on COCO        255

The chapter calls YOLOv3 what is YOLOv2 on VOC, and counts 45 numbers a cell: 5 anchors with 4 + 1 numbers, and 20
classes once. Both versions predict classes for each anchor: 125. YOLOv2's classes exclude one another (softmax), those
of YOLOv3 do not (logistic functions). YOLO9000's are the nodes of a tree: see ``ops.wordtree``.

``YOLO`` is YOLOv3's pyramid of grids over any base. Images are RGB / 255. The modules are called in the order of
Darknet's weights, so that ``weights.load("yolov3.weights", model)`` fills them.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from cnnjax import nn
from cnnjax.models import darknet
from cnnjax.models.darknet import conv_norm
from cnnjax.ops import cells, resize, wordtree
from cnnjax.types import Array, Key

Anchors = tuple[tuple[float, float], ...]  # (width, height) in pixels

# YOLOv2-VOC's are published in cells of 32 pixels.
VOC_ANCHORS = ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071))
COCO_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))


PRIOR = 0.01  # objectness to start from


class Detector(linen.Module):
    """Grids of cells over images; parent of the networks below, which have ``grids`` and ``parents``."""

    aux_weights: ClassVar[Mapping[str, float]] = {}
    head: ClassVar[str] = "yolo"

    @property
    def grids(self) -> tuple[cells.Grid, ...]:
        """Grids in the order of the outputs."""
        raise NotImplementedError

    def decode(self, maps: Sequence[Array], image_shape: tuple[int, int]) -> tuple[Array, Array]:
        """Boxes ``[n, k, 4]`` in pixels and scores ``[n, k, classes]`` of raw maps; see ``cells.candidates``."""
        return cells.candidates(maps, self.grids, image_shape)


def rare(grid: cells.Grid) -> Initializer:
    """Bias of a grid's map that starts with an objectness of 0.01, as most cells have no object.

    Source: Lin et al. 2017 (RetinaNet), sec. 3.3; the authors of YOLO start from 0.5.
    """

    def init(key: Key, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        bias = jnp.zeros((len(grid.anchors), 5 + grid.classes), dtype).at[:, 4].set(math.log(PRIOR / (1 - PRIOR)))
        return bias.reshape(shape)

    return init


class YOLOv2(Detector):
    """YOLOv2 for images ``[n, h, w, 3]``, h and w multiples of 32.

    ``apply(variables, images, train=...)`` gives one raw map in a tuple, ``[n, h / 32, w / 32, a · (5 + classes)]``
    float32; and the endpoints of Darknet-19 with deep, ``[n, h / 32, w / 32, 1024]``, which the map is made of.

    Attributes:
      num_classes: number of classes.
      anchors: (width, height) in pixels.
      parents: where the classes are the nodes of a tree, the parent of each, see ``ops.wordtree`` (YOLO9000).
      remat, dtype: as in Darknet-19.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (416, 416, 3)

    num_classes: int = 20
    anchors: Anchors = tuple((32 * w, 32 * h) for w, h in VOC_ANCHORS)
    parents: wordtree.Parents = ()
    remat: bool = False
    dtype: Dtype | None = None

    @property
    def grids(self) -> tuple[cells.Grid, ...]:
        """The one grid, of stride 32."""
        return (cells.Grid(self.anchors, self.num_classes, exclusive=True, parents=self.parents),)

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[tuple[jax.Array], dict[str, jax.Array]]:
        layer = functools.partial(conv_norm, dtype=self.dtype)
        _, endpoints = darknet.Darknet19(None, self.remat, self.dtype, name="base")(images, train=train)
        x = endpoints["stage6"]
        for i in (1, 2):
            x = layer(1024, 3, padding=1, name=f"deep{i}")(x, train)
        fine = layer(64, 1, name="passthrough")(endpoints["stage5"], train)
        x = jnp.concatenate([resize.reorg(fine, 2), x], axis=-1)
        x = endpoints["deep"] = layer(1024, 3, padding=1, name="deep3")(x, train)
        raw = nn.Conv(self.grids[0].channels, 1, bias_init=rare(self.grids[0]), dtype=self.dtype, name="detect")(x)
        return (raw.astype(jnp.float32),), endpoints


class Neck(linen.Module):
    """Convolutions 1×1 ``reduceN`` and 3×3 ``expandN`` in turn, the last one a 1×1 of ``features`` features; with a
    ``depth`` of 0 none."""

    features: int
    depth: int
    momentum: float
    dtype: Dtype | None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(conv_norm, momentum=self.momentum, dtype=self.dtype)
        for i in range(self.depth):
            x = layer(2 * self.features, 3, padding=1, name=f"expand{i}")(x, train) if i else x
            x = layer(self.features, 1, name=f"reduce{i + 1}")(x, train)
        return x


class YOLO(Detector):
    """YOLOv3's grids over any base, for images ``[n, h, w, 3]``, h and w multiples of the largest stride.

    From the deepest feature map on, a ``neck`` of convolutions; a 3×3 convolution and ``detect`` give the map of its
    grid; a 1×1 convolution, doubled in size, goes with the next finer map of the base into the next neck.
    ``apply(variables, images, train=...)`` gives the raw maps, coarse to fine, ``[n, h / s, w / s, a · (5 + classes)]``
    float32, and the endpoints of the base with neckS ``[n, h / s, w / s, features]`` by stride s.

    Attributes:
      base: a network with ``num_classes=None``.
      num_classes: number of classes.
      anchors: (width, height) in pixels from small to large, shared out evenly: the largest to the coarsest grid.
      grid_strides: strides of the grids, coarse to fine.
      features: features of the necks.
      depths: 1×1 convolutions of each neck, with 3×3 ones between them.
      momentum: momentum of the new layers' BatchNorm.
      parents: as of YOLOv2.
      dtype: type computed in; None: float32.
    """

    base: linen.Module
    num_classes: int = 80
    anchors: Anchors = COCO_ANCHORS
    grid_strides: tuple[int, ...] = (32, 16, 8)
    features: tuple[int, ...] = (512, 256, 128)
    depths: tuple[int, ...] = (3, 3, 3)
    momentum: float = darknet.MOMENTUM
    parents: wordtree.Parents = ()
    dtype: Dtype | None = None

    image_shape: ClassVar[tuple[int, int, int]] = (416, 416, 3)

    @property
    def grids(self) -> tuple[cells.Grid, ...]:
        """Grids from coarse to fine."""
        each, rest = divmod(len(self.anchors), len(self.grid_strides))
        if rest or not each:
            raise ValueError(f"expected as many anchors for each of {len(self.grid_strides)} grids, got {self.anchors}")
        shares = [self.anchors[i : i + each] for i in range(0, len(self.anchors), each)]
        return tuple(cells.Grid(tuple(share), self.num_classes, parents=self.parents) for share in reversed(shares))

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        layer = functools.partial(conv_norm, momentum=self.momentum, dtype=self.dtype)
        _, endpoints = self.base(images, train=train)
        deep = nn.pyramid(self.base, endpoints, self.grid_strides)
        maps: list[jax.Array] = []
        last: jax.Array | None = None
        levels = zip(self.grid_strides, self.features, self.depths, deep, self.grids, strict=True)
        for stride, features, depth, finer, grid in levels:
            x = jnp.asarray(finer)
            if last is not None:
                up = layer(features, 1, name=f"lateral{stride}")(last, train)
                x = jnp.concatenate([resize.upsample_nearest(up, x.shape[1] // up.shape[1]), x], axis=-1)
            neck = Neck(features, depth, self.momentum, self.dtype, name=f"neck{stride}")
            last = endpoints[f"neck{stride}"] = neck(x, train)
            x = layer(2 * features, 3, padding=1, name=f"expand{stride}")(last, train)
            raw = nn.Conv(grid.channels, 1, bias_init=rare(grid), dtype=self.dtype, name=f"detect{stride}")(x)
            maps.append(raw.astype(jnp.float32))
        return tuple(maps), endpoints


class TinyBackbone(linen.Module):
    """Backbone of YOLOv3-tiny: 3×3 convolutions of 16 … 512 features with 2×2 pooling between, then 1024 at stride 1.

    ``apply`` gives None and the endpoints conv1 … conv7; conv6 and conv7 have stride 32.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (416, 416, 3)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {f"conv{i}": 2 ** min(i - 1, 5) for i in range(1, 8)}

    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[None, dict[str, jax.Array]]:
        nn.check_images(images, 32)
        x, endpoints = images, {}
        for i in range(1, 8):
            if i == 7:
                x = nn.max_pool(x, 2, strides=1, padding=((0, 1), (0, 1)))
            elif i > 1:
                x = nn.max_pool(x, 2)
            x = endpoints[f"conv{i}"] = conv_norm(8 * 2**i, 3, padding=1, dtype=self.dtype, name=f"conv{i}")(x, train)
        return None, endpoints


def _yolov3(
    base: linen.Module | None = None,
    num_classes: int = 80,
    anchors: Anchors = COCO_ANCHORS,
    grid_strides: tuple[int, ...] = (32, 16, 8),
    features: tuple[int, ...] = (512, 256, 128),
    depths: tuple[int, ...] = (3, 3, 3),
    momentum: float = darknet.MOMENTUM,
    parents: wordtree.Parents = (),
    remat: bool = False,
    dtype: Dtype | None = None,
) -> YOLO:
    base = base or darknet.Darknet53(None, remat, dtype)
    return YOLO(base, num_classes, anchors, grid_strides, features, depths, momentum, parents, dtype)


def _tiny(num_classes: int = 80, anchors: Anchors = TINY_ANCHORS, dtype: Dtype | None = None) -> YOLO:
    return YOLO(TinyBackbone(dtype), num_classes, anchors, (32, 16), (256, 128), (1, 0), dtype=dtype)


VARIANTS = {"yolov2_voc": YOLOv2, "yolov3": _yolov3, "yolov3_tiny": _tiny}
