"""Inception-v4 and Inception-ResNet-v2 against timm."""

import peers


def test_inception_v4(timm):
    peers.check_torch(
        "inception_v4",
        lambda: timm.create_model("inception_v4"),
        (75, 96),
        saved="safetensors",
        train_size=75,
        dropout=0.0,
    )


def test_inception_resnet_v2(timm):
    """Inference only: our BatchNorm has no scale, which the weights before it take in."""
    make = timm.create_model
    peers.check_torch("inception_resnet_v2", lambda: make("inception_resnet_v2"), (75, 107), train_size=None)
