"""FCN and DeepLabv3 on ResNet in torchvision's files."""

from cnnjax.weights.layouts import Layout, resnet

_BASE = tuple(
    (f"base/{ours}", f"backbone.{theirs}")
    for ours, theirs in resnet.TORCH.keys
    if "head" not in ours and "/se/" not in ours
)


def _head(ours: str, theirs: str, first: int = 0) -> tuple[tuple[str, str], ...]:
    """Rows of a convolution, its BatchNorm, ReLU, dropout or nothing, and the classifier."""
    places = ((f"{ours}/hidden/conv", first), (f"{ours}/hidden/norm", first + 1), (f"{ours}/classifier", 4))
    return tuple((path, f"{theirs}.{place}") for path, place in places)


_AUX = _head("aux", "aux_classifier")
_PYRAMID = (
    (r"head/pyramid/branch(\d)/conv", "classifier.0.convs.{1}.0"),
    (r"head/pyramid/branch(\d)/norm", "classifier.0.convs.{1}.1"),
    (r"head/pyramid/pooled/conv", "classifier.0.convs.4.1"),
    (r"head/pyramid/pooled/norm", "classifier.0.convs.4.2"),
    (r"head/pyramid/project/conv", "classifier.0.project.0"),
    (r"head/pyramid/project/norm", "classifier.0.project.1"),
)


def _torchvision(head: tuple[tuple[str, str], ...]) -> dict[str, Layout]:
    return {"torchvision": Layout((*_BASE, *head, *_AUX), epsilon=1e-5, unused=r"aux_classifier\..*")}


LAYOUTS = {
    "DilatedFCN": _torchvision(_head("head", "classifier")),
    "DeepLabV3": _torchvision((*_PYRAMID, *_head("head", "classifier", 1))),
}
