"""SENet-154 against timm."""

import peers


def test_senet154(timm):
    peers.check_torch(
        "senet154",
        lambda: timm.create_model("legacy_senet154", drop_rate=0.0),
        (32, (35, 49)),
        saved="safetensors",
        train_size=32,
        residual=r"layer.*bn3$",
        dropout=0.0,
    )
