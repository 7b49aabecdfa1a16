"""AlexNet against torchvision."""

import peers


def test_alexnet(torchvision):
    """The last feature map is 6×6 at 224 pixels; at 127 it is enlarged to that, at 300 by 200 shrunk."""
    peers.check_torch(
        "alexnet_torchvision",
        lambda: torchvision.models.alexnet(dropout=0.0),
        (127, 224, (300, 200)),
        saved="legacy",
        dropout=0.0,
    )
