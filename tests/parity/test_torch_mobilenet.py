"""MobileNet and MobileNetV2 against timm and torchvision, which pad by one on every side."""

import peers
import pytest

TORCH = {"padding": 1, "epsilon": 1e-5, "momentum": 0.9, "dropout": 0.0}


def test_mobilenet_v1(timm):
    make = timm.create_model("mobilenetv1_100")
    assert sum(p.numel() for p in make.parameters()) == 4_231_976
    peers.check_torch("mobilenet_v1", lambda: make, (64, (97, 64)), saved="safetensors", **TORCH)


@pytest.mark.parametrize(("width", "saved"), [(1.0, "zip"), (0.35, "legacy")])
def test_mobilenet_v2(torchvision, width, saved):
    peers.check_torch(
        "mobilenet_v2",
        lambda: torchvision.models.mobilenet_v2(width_mult=width, dropout=0.0),
        (64, (97, 64)),
        saved=saved,
        width=width,
        **TORCH,
    )


def test_mobilenet_v2_of_timm(timm):
    make = timm.create_model
    peers.check_torch("mobilenet_v2", lambda: make("mobilenetv2_100"), (64, (97, 64)), saved="legacy", **TORCH)
