"""MobileNet and MobileNetV2 against keras.applications."""

import re

import keras
import peers
import pytest


def rename_v1(path):
    """Our path → Keras' layer."""
    if (match := re.fullmatch(r"block(\d+)/(depthwise|pointwise)/(conv|norm)", path)) is not None:
        kind = "dw" if match[2] == "depthwise" else "pw"
        return f"conv_{kind}_{match[1]}" + ("_bn" if match[3] == "norm" else "")
    return {"stem/conv": "conv1", "stem/norm": "conv1_bn", "head/dense": "conv_preds"}[path]


def rename_v2(path):
    if (match := re.fullmatch(r"block(\d+)/(\w+)/(conv|norm)", path)) is not None:
        block = "expanded_conv" if match[1] == "1" else f"block_{int(match[1]) - 1}"
        return f"{block}_{match[2]}" + ("_BN" if match[3] == "norm" else "")
    return {
        "stem/conv": "Conv1",
        "stem/norm": "bn_Conv1",
        "last/conv": "Conv_1",
        "last/norm": "Conv_1_bn",
        "head/dense": "predictions",
    }[path]


@pytest.mark.parametrize("width", [1.0, 0.75])
def test_mobilenet_v1(width):
    peers.check_keras(
        "mobilenet_v1",
        lambda shape: keras.applications.MobileNet(
            weights=None, input_shape=shape, alpha=width, dropout=0.0, classifier_activation=None
        ),
        rename_v1,
        (64, (97, 64)),
        width=width,
        dropout=0.0,
    )


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_mobilenet_v2(width):
    peers.check_keras(
        "mobilenet_v2",
        lambda shape: keras.applications.MobileNetV2(
            weights=None, input_shape=shape, alpha=width, classifier_activation=None
        ),
        rename_v2,
        (64, (97, 64)),
        width=width,
        dropout=0.0,
    )
