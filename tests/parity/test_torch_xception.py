"""Xception against timm, which pads its max poolings on both sides."""

import peers


def test_xception(timm):
    peers.check_torch(
        "xception",
        lambda: timm.create_model("legacy_xception"),
        (64, 75),
        train_size=64,
        padding=1,
        epsilon=1e-5,
        momentum=0.9,
        dropout=0.0,
    )
