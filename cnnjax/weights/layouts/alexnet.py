"""AlexNet in torchvision's files."""

from cnnjax.weights.layouts import Layout

_TORCHVISION = Layout(
    (
        (r"conv1", "features.0"),
        (r"conv2", "features.3"),
        (r"conv3", "features.6"),
        (r"conv4", "features.8"),
        (r"conv5", "features.10"),
        (r"fc1", "classifier.1"),
        (r"fc2", "classifier.4"),
        (r"head/dense", "classifier.6"),
    ),
    flat={"fc1": (256, 6, 6)},
)

LAYOUTS = {"AlexNetTorchvision": {"torchvision": _TORCHVISION}}
