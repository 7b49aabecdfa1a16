"""ResNet and SE-ResNet against torchvision and timm."""

import peers
import pytest


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("resnet18", "legacy"),
        ("resnet34", "safetensors"),
        ("resnet50", "zip"),
        ("resnet101", "zip"),
        ("resnet152", "legacy"),
    ],
)
def test_resnet(torchvision, name, saved):
    make = torchvision.models.get_model
    peers.check_torch(name, lambda: make(name), (64, 97), saved=saved, residual=r"bn3$|layer.*bn2$")


@pytest.mark.parametrize(
    ("name", "saved"), [("seresnet50", "safetensors"), ("seresnet101", "zip"), ("seresnet152", "legacy")]
)
def test_seresnet(timm, name, saved):
    peers.check_torch(name, lambda: timm.create_model(name), (64, 97), saved=saved, residual=r"bn3$|layer.*bn2$")
