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


# The default of --nets. torchvision's MobileNetV2 and timm's Xception pad as torch does.
NETS = {
    "fashion_cnn": Net((28, 28, 1), 64),
    "vgg16": Net(batch=4),
    "resnet50": Net(),
    "mobilenet_v2": Net(fields={"padding": 1, "epsilon": 1e-5, "momentum": 0.9}),
    "xception": Net((299, 299, 3), fields={"padding": 1, "epsilon": 1e-5, "momentum": 0.9}),
}
MORE = {"resnet18": Net(), "resnet152": Net()}
