"""Networks that a Darknet ``.cfg`` file describes: YOLOv2, YOLOv3, their tiny and fast relatives, classifiers.

    model, variables = darknet.load("yolov3.cfg", "yolov3.weights")
    maps, _ = model.apply(variables, images, train=False)      # images: RGB / 255
    boxes, scores = model.decode(maps, images.shape[1:3])

Every section is a layer; its parameters lie in ``layerN``, counted from 0 as Darknet prints them. Source: the program
at pjreddie.com/darknet, and for groups, relu6, swish, mish and scale_x_y its successor by A. Bochkovskiy. This file
alone among the models knows others' files: here the file is the model.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from cnnjax import nn, weights
from cnnjax.ops import cells, resize, wordtree
from cnnjax.types import Array, PyTree
from cnnjax.weights.formats import darknet as files
from cnnjax.weights.formats.darknet import Section

EPSILON = 1e-6  # of BatchNorm in the program

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array] | None] = {
    "linear": None,
    "leaky": nn.leaky_relu,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "logistic": jax.nn.sigmoid,
    "swish": jax.nn.swish,
    "mish": jax.nn.mish,
}
# Settings with which a layer computes something else than is built here, unless they have this value.
_FOREIGN: Mapping[str, Mapping[str, int | str]] = {
    "convolutional": {"binary": 0, "xnor": 0, "flipped": 0, "antialiasing": 0, "deform": 0, "dilation": 1},
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0},
    "shortcut": {"weights_type": "none"},
    "upsample": {"scale": 1},
    "reorg": {"reverse": 0, "flatten": 0, "extra": 0},
    "yolo": {"new_coords": 0},
    "region": {"coords": 4, "background": 0},
    "softmax": {"groups": 1, "tree": "", "spatial": 0},
}


class Layer(NamedTuple):
    """Layer of a cfg file.

    Attributes:
      kind: name of its section.
      channels: channels of its output.
      inputs: numbers of the layers that it takes; -1 is the image.
      size, stride, padding, groups: of windows, in pixels; ``padding`` is (before, after).
      group: place of the group of channels that route takes, of ``groups``.
      norm: whether BatchNorm follows the convolution.
      activation: key of ``ACTIVATIONS``.
      rate: share of values that dropout drops.
      head: the detection head of yolo and region.
    """

    kind: str
    channels: int
    inputs: tuple[int, ...]
    size: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    group: int = 0
    norm: bool = False
    activation: str = "linear"
    rate: float = 0.0
    head: cells.Grid | None = None


class Darknet(linen.Module):
    """Network of the layers of a cfg file, for images ``[n, h, w, c]``, RGB / 255.

    ``apply(variables, images, train=...)`` gives the raw maps of all detection heads, ``[n, h, w, a · (5 + classes)]``
    float32, in the order of the file, and the endpoints ``layerN``, the output of each layer. Without such a head it
    gives its last output as logits ``[n, classes]``; its softmax is left to the loss.

    Attributes:
      layers: the layers.
      image_shape: height, width and channels that the file names; others that the strides divide do too.
      dtype: type computed in; None: float32.
    """

    aux_weights: ClassVar[Mapping[str, float]] = {}
    head: ClassVar[str] = "yolo"

    layers: tuple[Layer, ...]
    image_shape: tuple[int, int, int]
    dtype: Dtype | None = None

    @property
    def grids(self) -> tuple[cells.Grid, ...]:
        """Detection heads; empty for a classifier."""
        return tuple(layer.head for layer in self.layers if layer.head is not None)

    @property
    def parents(self) -> wordtree.Parents:
        """Parents of the classes, where they are the nodes of a tree, see ``ops.wordtree``."""
        return self.grids[0].parents if self.grids else ()

    @property
    def num_classes(self) -> int:
        """Classes of the heads, or of the classifier."""
        return self.grids[0].classes if self.grids else self.layers[-1].channels

    def decode(self, maps: Sequence[Array], image_shape: tuple[int, int]) -> tuple[Array, Array]:
        """Boxes ``[n, k, 4]`` in pixels and scores ``[n, k, classes]`` of raw maps; see ``cells.candidates``."""
        return cells.candidates(maps, self.grids, image_shape)

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[PyTree, dict[str, jax.Array]]:
        nn.check_images(images, 1)
        outputs = {-1: jnp.asarray(images)}
        maps = []
        for number, layer in enumerate(self.layers):
            inputs = [outputs[place] for place in layer.inputs]
            outputs[number] = self._layer(number, layer, inputs, train)
            if layer.head is not None:
                maps.append(outputs[number].astype(jnp.float32))
        endpoints = {f"layer{number}": x for number, x in outputs.items() if number >= 0}
        last = outputs[len(self.layers) - 1]
        return (tuple(maps) if maps else last.reshape(len(last), -1).astype(jnp.float32)), endpoints

    def _layer(self, number: int, layer: Layer, inputs: Sequence[jax.Array], train: bool) -> jax.Array:
        x, name = inputs[0], f"layer{number}"
        act = ACTIVATIONS[layer.activation]
        match layer.kind:
            case "convolutional":
                options: dict[str, Any] = {"features": layer.channels, "kernel_size": layer.size, "dtype": self.dtype}
                options |= {
                    "strides": layer.stride,
                    "padding": (layer.padding,) * 2,
                    "groups": layer.groups,
                    "name": name,
                }
                if layer.norm:
                    return nn.ConvNorm(epsilon=EPSILON, activation=act, **options)(x, train)
                x = nn.Conv(**options)(x)
                return x if act is None else act(x)
            case "maxpool":
                return nn.max_pool(x, layer.size, strides=layer.stride, padding=(layer.padding,) * 2)
            case "avgpool":
                return nn.global_avg_pool(x)[:, None, None]
            case "route":
                parts = [jnp.split(each, layer.groups, axis=-1)[layer.group] for each in inputs]
                return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
            case "shortcut":
                x = functools.reduce(jnp.add, inputs)
                return x if act is None else act(x)
            case "upsample":
                return resize.upsample_nearest(x, layer.stride)
            case "reorg":
                return resize.reorg(x, layer.stride)
            case "dropout":
                return linen.Dropout(layer.rate, deterministic=not train, name=name)(x)
            case _:  # the heads, softmax and cost are computed by decode and by the loss
                return x


def load(cfg: str | Path, weights_file: str | Path) -> tuple[Darknet, PyTree]:
    """Network of a ``.cfg`` file with the weights of a ``.weights`` file, each number of which is used once.

    Raises:
      UserError: a file is damaged or cannot be read, a section or setting is not known, or they do not fit.
    """
    model = read(cfg)
    return model, weights.load(weights_file, model)


def read(cfg: str | Path) -> Darknet:
    """Network of a ``.cfg`` file, without weights.

    Raises:
      UserError: the file cannot be read, or a section cannot be built; the message has the line.
    """
    net, *rest = files.sections(Path(cfg).expanduser())
    if net.name not in ("net", "network"):
        raise net.error("the first section must be [net]")
    if not rest:
        raise net.error("no layer follows")
    shape = net.number("height", 0, 1), net.number("width", 0, 1), net.number("channels", 0, 1)
    layers: list[Layer] = []
    strides: list[float] = []
    for section in rest:
        if section.name not in _BUILD:
            raise section.error(f"unknown section; known: {', '.join(sorted(_BUILD))}")
        for key, plain in _FOREIGN.get(section.name, {}).items():
            if section.text(key, str(plain)) not in (str(plain), f"{plain}.0"):
                raise section.error(f"{key}={section.values[key][0]} is not supported", key)
        layer, stride = _BUILD[section.name](section, _Before(layers, strides, shape))
        layers.append(layer)
        strides.append(stride)
    return Darknet(tuple(layers), shape)


class _Before(NamedTuple):
    """Layers before one, their total strides, and the shape of the image."""

    layers: Sequence[Layer]
    strides: Sequence[float]
    image_shape: tuple[int, ...]

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def channels(self, place: int) -> int:
        return self.image_shape[2] if place < 0 else self.layers[place].channels

    def stride(self, place: int) -> float:
        return 1 if place < 0 else self.strides[place]

    def place(self, section: Section, key: str) -> tuple[int, ...]:
        """Numbers of earlier layers that a setting names, negative ones counted back from this layer."""
        found = tuple(x if x >= 0 else len(self.layers) + x for x in section.numbers(key))
        if wrong := [x for x in found if not 0 <= x < len(self.layers)]:
            raise section.error(f"{key}: layer {wrong[0]} is not before layer {len(self.layers)}", key)
        if len({self.stride(place) for place in found}) > 1:
            raise section.error(f"{key}: the layers {found} have maps of different sizes", key)
        return found


def _activation(section: Section, default: str) -> str:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(f"activation={name}; known: {', '.join(sorted(ACTIVATIONS))}", "activation")
    return name


def _convolutional(section: Section, before: _Before) -> tuple[Layer, float]:
    features, size, stride = (section.number(*each, 1) for each in (("filters", 1), ("size", 1), ("stride", 1)))
    groups, channels = section.number("groups", 1, 1), before.channels(before.last)
    if channels % groups or features % groups:
        raise section.error(
            f"groups={groups} does not divide {channels} input channels and filters={features}", "groups"
        )
    pad = size // 2 if section.number("pad", 0) else section.number("padding", 0)
    layer = Layer(
        "convolutional",
        features,
        (before.last,),
        size,
        stride,
        (pad, pad),
        groups,
        norm=bool(section.number("batch_normalize", 0)),
        activation=_activation(section, "logistic"),
    )
    return layer, before.stride(before.last) * stride


def _maxpool(section: Section, before: _Before) -> tuple[Layer, float]:
    stride = section.number("stride", 1, 1)
    size = section.number("size", stride, 1)
    padding = section.number("padding", size - 1)
    # The program begins half of the padding before the map; all that a window needs follows after it.
    pads = (padding // 2, padding - padding // 2)
    if max(pads) >= size:
        raise section.error(f"padding={padding} is too much for size={size}", "padding")
    layer = Layer("maxpool", before.channels(before.last), (before.last,), size, stride, pads)
    return layer, before.stride(before.last) * stride


def _route(section: Section, before: _Before) -> tuple[Layer, float]:
    places, groups = before.place(section, "layers"), section.number("groups", 1, 1)
    group = section.number("group_id", 0)
    counts = [before.channels(place) for place in places]
    if group >= groups or any(count % groups for count in counts):
        raise section.error(f"there is no group {group} of {groups} of layers with {counts} channels", "groups")
    layer = Layer("route", sum(counts) // groups, places, groups=groups, group=group)
    return layer, before.stride(places[0])


def _shortcut(section: Section, before: _Before) -> tuple[Layer, float]:
    places = (before.last, *before.place(section, "from"))
    counts = [before.channels(place) for place in places]
    if len(set(counts)) > 1 or len({before.stride(place) for place in places}) > 1:
        raise section.error(f"the layers {places} have maps of different shapes, {counts} channels", "from")
    return Layer("shortcut", counts[0], places, activation=_activation(section, "linear")), before.stride(places[0])


def _resized(section: Section, before: _Before) -> tuple[Layer, float]:
    stride, channels = section.number("stride", 2, 1), before.channels(before.last)
    if section.name == "upsample":
        layer = Layer("upsample", channels, (before.last,), stride=stride)
        return layer, before.stride(before.last) / stride
    if channels % stride**2:
        raise section.error(f"stride={stride} does not fit {channels} channels", "stride")
    layer = Layer("reorg", channels * stride**2, (before.last,), stride=stride)
    return layer, before.stride(before.last) * stride


def _plain(section: Section, before: _Before) -> tuple[Layer, float]:
    rate = section.floats("probability", "0.5")[0] if section.name == "dropout" else 0.0
    if not 0 <= rate < 1:
        raise section.error(f"probability={rate} must be in 0 … 1, 1 excluded", "probability")
    layer = Layer(section.name, before.channels(before.last), (before.last,), rate=rate)
    return layer, float(before.image_shape[0]) if section.name == "avgpool" else before.stride(before.last)


def _head(section: Section, before: _Before) -> tuple[Layer, float]:
    numbers, classes = section.floats("anchors"), section.number("classes", 20, 1)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    count = section.number("num", 1, 1)
    if len(numbers) != 2 * count or min(numbers) <= 0:
        raise section.error(f"num={count} wants {2 * count} anchors above 0, got {len(numbers)} numbers", "anchors")
    stride = before.stride(before.last)
    if section.name == "yolo":
        chosen = section.numbers("mask") if "mask" in section.values else tuple(range(count))
        if not all(0 <= place < count for place in chosen):
            raise section.error(f"mask={section.text('mask', '')} names anchors beyond num={count}", "mask")
        pairs = [pairs[place] for place in chosen]
        grid = cells.Grid(tuple(pairs), classes, scale=section.floats("scale_x_y", "1")[0])
    else:
        exclusive = bool(section.number("softmax", 0))
        parents = section.tree("tree") if "tree" in section.values else ()
        if parents and len(parents) != classes:
            raise section.error(f"its tree has {len(parents)} nodes, but classes={classes}", "tree")
        sizes = tuple((w * stride, h * stride) for w, h in pairs)
        grid = cells.Grid(sizes, classes, exclusive, parents=parents)
    channels = before.channels(before.last)
    if channels != grid.channels:
        raise section.error(
            f"{len(pairs)} anchors and classes={classes} want {grid.channels} = {len(pairs)} · (5 + {classes}) filters "
            f"before it, got {channels}"
        )
    return Layer(section.name, channels, (before.last,), head=grid), stride


_BUILD: Mapping[str, Callable[[Section, _Before], tuple[Layer, float]]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _resized,
    "reorg": _resized,
    **dict.fromkeys(("avgpool", "dropout", "softmax", "cost"), _plain),
    **dict.fromkeys(("yolo", "region"), _head),
}
