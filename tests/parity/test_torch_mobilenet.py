"""MobileNet against timm and MobileNetV2 against torchvision, which pad by one on every side."""

import re

import peers
import pytest

TORCH = {"padding": 1, "epsilon": 1e-5, "momentum": 0.9, "dropout": 0.0}
BLOCKS = (1, 2, 2, 6, 2)  # timm's v1, by the size of their maps


def rename_v1(path):
    """Our path → timm's name."""
    if (match := re.fullmatch(r"block(\d+)/(depthwise|pointwise)/(conv|norm)", path)) is not None:
        stage, block = [(s, b) for s, count in enumerate(BLOCKS) for b in range(count)][int(match[1]) - 1]
        kinds = {"conv": ("conv_dw", "conv_pw"), "norm": ("bn1", "bn2")}[match[3]]
        return f"blocks.{stage}.{block}.{kinds[match[2] == 'pointwise']}"
    return {"stem/conv": "conv_stem", "stem/norm": "bn1", "head/dense": "classifier"}[path]


def rename_v2(path):
    """Our path → torchvision's name."""
    if (match := re.fullmatch(r"block(\d+)/(\w+)/(conv|norm)", path)) is not None:
        layer = ("expand", "depthwise", "project").index(match[2]) - (match[1] == "1")  # the first does not expand
        norm = match[3] == "norm"
        inner = layer + norm if match[2] == "project" else f"{layer}.{int(norm)}"
        return f"features.{match[1]}.conv.{inner}"
    return {
        "stem/conv": "features.0.0",
        "stem/norm": "features.0.1",
        "last/conv": "features.18.0",
        "last/norm": "features.18.1",
        "head/dense": "classifier.1",
    }[path]


def test_mobilenet_v1(timm):
    make = timm.create_model("mobilenetv1_100")
    assert sum(p.numel() for p in make.parameters()) == 4_231_976
    peers.check_torch("mobilenet_v1", lambda: make, rename_v1, (64, (97, 64)), **TORCH)


@pytest.mark.parametrize("width", [1.0, 0.35])
def test_mobilenet_v2(torchvision, width):
    peers.check_torch(
        "mobilenet_v2",
        lambda: torchvision.models.mobilenet_v2(width_mult=width, dropout=0.0),
        rename_v2,
        (64, (97, 64)),
        width=width,
        **TORCH,
    )
