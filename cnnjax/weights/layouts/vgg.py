"""VGG in files of Keras, torchvision and timm."""

from collections.abc import Sequence

from cnnjax.weights.layouts import Layout

_D, _E = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions by block of VGG16 and VGG19

_KERAS = Layout(
    (
        (r"block(\d)/conv(\d)", "block{1}_conv{2}"),
        (r"fc(\d)", "fc{1}"),
        (r"head/dense", "predictions"),
    )
)


def _torchvision(blocks: Sequence[int]) -> Layout:
    """torchvision's names, which number convolutions, ReLUs and poolings in one row."""
    rows = []
    place = 0
    for block, convs in enumerate(blocks, start=1):
        rows += [(f"block{block}/conv{i + 1}", f"features.{place + 2 * i}") for i in range(convs)]
        place += 2 * convs + 1
    rows += [("fc1", "classifier.0"), ("fc2", "classifier.3"), ("head/dense", "classifier.6")]
    return Layout(tuple(rows), flat={"fc1": (512, 7, 7)}, fields={"convs": blocks})


def _timm(blocks: Sequence[int]) -> Layout:
    """timm's names, whose dense layers before the head are convolutions."""
    *convs, _, _, _ = _torchvision(blocks).keys
    rows = (*convs, (r"fc(\d)", "pre_logits.fc{1}"), ("head/dense", "head.fc"))
    return Layout(rows, fields={"convs": blocks})


LAYOUTS = {
    "VGG": {
        "keras": _KERAS,
        "torchvision vgg16": _torchvision(_D),
        "torchvision vgg19": _torchvision(_E),
        "timm vgg16": _timm(_D),
        "timm vgg19": _timm(_E),
    }
}
