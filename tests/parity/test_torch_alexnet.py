"""AlexNet against torchvision."""

import peers


def test_alexnet(torchvision):
    """At 224 the last map is 6×6; at 127 and 300 by 200 it is enlarged and shrunk to that."""
    peers.check_torch(
        "alexnet_torchvision",
        lambda: torchvision.models.alexnet(dropout=0.0),
        (127, 224, (300, 200)),
        saved="legacy",
        dropout=0.0,
    )
