"""Inception-v4 against timm."""

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
