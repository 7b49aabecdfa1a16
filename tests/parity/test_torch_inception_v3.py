"""Inception v3 against torchvision and timm."""

import peers


def outputs(result):
    return list(result) if isinstance(result, tuple) else [result]


def test_inception_v3(torchvision):
    peers.check_torch(
        "inception_v3",
        lambda: torchvision.models.Inception3(init_weights=False, dropout=0.0),
        (96, 107),
        saved="legacy",
        train_size=299,  # the smallest that its auxiliary head admits
        batch=2,
        outputs=outputs,
        dropout=0.0,
    )


def test_inception_v3_of_timm(timm):
    """timm's network without the auxiliary head."""
    make = timm.create_model
    peers.check_torch("inception_v3", lambda: make("inception_v3"), (96,), train_size=96, aux=False, dropout=0.0)
