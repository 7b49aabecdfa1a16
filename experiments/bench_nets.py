"""Networks that ``bench.py`` times: variants of ``cnnjax.models``, with the fields that make them equal the peers'."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Net(NamedTuple):
    """Settings of one network and its input."""

    shape: tuple[int, int, int] = (224, 224, 3)
    """Height, width and channels of an image."""
    batch: int = 8
    """Images per step; 8 fit a laptop with 8 GB."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Arguments of models.create beside the name."""
    model: str | None = None
    """Name for models.create; None: the net's."""
    pixels: bool = False
    """Labels are of pixels, not of images."""


# The default of --nets. torchvision's MobileNetV2 and timm's Xception pad as torch does.
NETS = {
    "fashion_cnn": Net((28, 28, 1), 64),
    "vgg16": Net(batch=4),
    "resnet50": Net(),
    "mobilenet_v2": Net(fields={"padding": 1, "epsilon": 1e-5, "momentum": 0.9}),
    "xception": Net((299, 299, 3), fields={"padding": 1, "epsilon": 1e-5, "momentum": 0.9}),
}
# FCN-8s has the scores of three maps, torchvision's head convolves the last one: both over MobileNetV2.
_FCN = {"base": ("mobilenet_v2", dict(NETS["mobilenet_v2"].fields)), "num_classes": 11}
MORE = {
    "resnet18": Net(),
    "resnet152": Net(),
    "fcn_mobilenet_v2": Net((360, 480, 3), 4, _FCN, "fcn8s_vgg16", pixels=True),
}
# Names in keras.applications; the chapter's CNN is written by hand.
KERAS = {
    "fashion_cnn": "",
    "resnet50": "ResNet50",
    "resnet152": "ResNet152",
    "vgg16": "VGG16",
    "mobilenet_v2": "MobileNetV2",
    "xception": "Xception",
}
ALL = {**NETS, **MORE}
