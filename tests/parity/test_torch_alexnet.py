"""AlexNet against torchvision."""

import peers

LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc1": "classifier.1",
    "fc2": "classifier.4",
    "head/dense": "classifier.6",
}


def test_alexnet(torchvision):
    """At 224 the last map is 6×6; at 127 and 300 by 200 it is enlarged and shrunk to that."""
    peers.check_torch(
        "alexnet_torchvision",
        lambda: torchvision.models.alexnet(dropout=0.0),
        LAYERS.get,
        (127, 224, (300, 200)),
        flattened={"fc1": (256, 6, 6)},
        dropout=0.0,
    )
