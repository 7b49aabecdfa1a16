"""Inception v3 against torchvision."""

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
