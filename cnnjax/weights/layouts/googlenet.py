"""GoogLeNet with BatchNorm in torchvision's files."""

from cnnjax.weights.layouts import Layout

_TORCHVISION = Layout(
    (
        *(
            (f"{ours}/{layer}", f"{theirs}.{their_layer}")
            for ours, theirs in (
                (r"conv1", "conv1"),
                (r"conv2_reduce", "conv2"),
                (r"conv2", "conv3"),
                (r"(inception\w+)/conv1x1", "{1}.branch1"),
                (r"(inception\w+)/reduce3x3", "{1}.branch2.0"),
                (r"(inception\w+)/conv3x3", "{1}.branch2.1"),
                (r"(inception\w+)/reduce5x5", "{1}.branch3.0"),
                (r"(inception\w+)/conv5x5", "{1}.branch3.1"),
                (r"(inception\w+)/project", "{1}.branch4.1"),
                (r"(aux\d)/conv", "{1}.conv"),
            )
            for layer, their_layer in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"(aux\d)/dense", "{1}.fc1"),
        (r"(aux\d)/head/dense", "{1}.fc2"),
        (r"head/dense", "fc"),
    ),
    epsilon=1e-3,
    fields={"reduction": None},
    flat={"aux1/dense": (128, 4, 4), "aux2/dense": (128, 4, 4)},
    unused=r"aux\d\.",
)

LAYOUTS = {"GoogLeNet": {"torchvision": _TORCHVISION}}
