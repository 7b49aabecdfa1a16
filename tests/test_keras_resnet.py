"""ResNet with its strides as Keras has them, and pre-activation, against keras.applications."""

import re

import keras
import peers
import pytest

APPLICATIONS = {"resnet50_v1": "ResNet50", "resnet101_v1": "ResNet101", "resnet152_v1": "ResNet152"}


def rename(path):
    """Our path → Keras' layer."""
    path = re.sub(r"^stem/conv$", "conv1_conv", re.sub(r"^stem/norm$", "conv1_bn", path))
    path = re.sub(r"^stage(\d)/block(\d+)/", lambda m: f"conv{int(m[1]) + 1}_block{m[2]}_", path)
    path = re.sub(r"conv(\d)/(conv|norm)$", lambda m: f"{m[1]}_{'bn' if m[2] == 'norm' else 'conv'}", path)
    path = path.replace("shortcut/conv", "0_conv").replace("shortcut/norm", "0_bn")
    return path.replace("head/dense", "predictions")


def rename_v2(path):
    path = re.sub(r"^stage(\d)/block(\d+)/", lambda m: f"conv{int(m[1]) + 1}_block{m[2]}_", path)
    for ours, theirs in (
        ("norm1", "preact_bn"),
        ("norm2", "1_bn"),
        ("norm3", "2_bn"),
        ("conv1", "1_conv"),
        ("conv2", "2_conv"),
        ("conv3", "3_conv"),
        ("shortcut", "0_conv"),
    ):
        path = re.sub(rf"_{ours}$", f"_{theirs}", path)
    return {"stem": "conv1_conv", "norm": "post_bn", "head/dense": "predictions"}.get(path, path)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_resnet_v1(name):
    make = getattr(keras.applications, APPLICATIONS[name])
    peers.check_keras(
        name,
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        rename,
        (64, 97),
        residual="_3_bn$",
        drop_bias=True,
    )


def test_resnet_v2():
    make = keras.applications.ResNet50V2
    peers.check_keras(
        "resnet50_v2",
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        rename_v2,
        (64, 97),
    )
