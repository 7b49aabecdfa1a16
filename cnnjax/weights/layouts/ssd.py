"""SSD in torchvision's files."""

from cnnjax.weights.layouts import Layout

# torchvision numbers convolutions, ReLUs and poolings in one row, which it splits before the fourth pooling.
_VGG = [
    (f"base/block{block}/conv{i + 1}", f"backbone.features.{place + 2 * i}")
    for block, place, convs in ((1, 0, 2), (2, 5, 2), (3, 10, 3), (4, 17, 3))
    for i in range(convs)
]
_TORCHVISION = Layout(
    (
        *_VGG,
        *((f"base/block5/conv{i}", f"backbone.extra.0.{2 * i - 1}") for i in (1, 2, 3)),
        (r"base/norm", "backbone:scale_weight"),
        (r"base/conv6", "backbone.extra.0.7.1"),
        (r"base/conv7", "backbone.extra.0.7.3"),
        (r"extra(\d)/reduce", "backbone.extra.{1}.0"),
        (r"extra(\d)/conv", "backbone.extra.{1}.2"),
        (r"head/classes(\d)", "head.classification_head.module_list.{1-1}"),
        (r"head/boxes(\d)", "head.regression_head.module_list.{1-1}"),
    )
)

LAYOUTS = {"SSD": {"torchvision": _TORCHVISION}}
