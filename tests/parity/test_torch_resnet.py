"""ResNet and SE-ResNet against torchvision and timm."""

import re

import peers
import pytest


def rename(path):
    """Our path → torchvision's and timm's name."""
    path = re.sub(r"^stem/conv$", "conv1", re.sub(r"^stem/norm$", "bn1", path))
    path = path.replace("head/dense", "fc")
    path = re.sub(r"stage(\d)/block(\d+)/", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.", path)
    path = re.sub(r"conv(\d)/(conv|norm)$", lambda m: f"{'bn' if m[2] == 'norm' else 'conv'}{m[1]}", path)
    path = path.replace("shortcut/conv", "downsample.0").replace("shortcut/norm", "downsample.1")
    return path.replace("se/reduce", "se.fc1").replace("se/expand", "se.fc2")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnet(torchvision, name):
    peers.check_torch(name, lambda: torchvision.models.get_model(name), rename, (64, 97), residual=r"bn3$|layer.*bn2$")


@pytest.mark.parametrize("name", ["seresnet50", "seresnet101", "seresnet152"])
def test_seresnet(timm, name):
    peers.check_torch(name, lambda: timm.create_model(name), rename, (64, 97), residual=r"bn3$|layer.*bn2$")
