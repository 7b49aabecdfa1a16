"""Inception v3 in files of Keras and torchvision."""

from collections.abc import Iterator

from cnnjax.weights.layouts import Layout

_FIG5 = ("branch1_1", "branch2_1", "branch2_2", "branch3_1", "branch3_2", "branch3_3", "project")
_FIG6 = ("branch1_1", *(f"branch2_{i}" for i in range(1, 4)), *(f"branch3_{i}" for i in range(1, 6)), "project")
_FIG7 = (
    *("branch1_1", "branch2_1", "branch2_2a", "branch2_2b"),
    *("branch3_1", "branch3_2", "branch3_3a", "branch3_3b", "project"),
)
_MODULES = {
    **{f"mixed5{letter}": _FIG5 for letter in "bcd"},
    "mixed6a": ("branch1_1", "branch2_1", "branch2_2", "branch2_3"),
    **{f"mixed6{letter}": _FIG6 for letter in "bcde"},
    "mixed7a": ("branch1_1", "branch1_2", *(f"branch2_{i}" for i in range(1, 5))),
    **{f"mixed7{letter}": _FIG7 for letter in "bc"},
}


def _layers() -> Iterator[str]:
    """Convolutions with BatchNorm, in the order in which Keras creates and therefore numbers them."""
    yield from (f"conv{i}" for i in range(1, 6))
    yield from (f"{module}/{layer}" for module, layers in _MODULES.items() for layer in layers)


def _keras(first: int) -> Layout:
    """Keras' names, numbered from ``first``: 0 today, 1 in the file on keras.io."""
    rows = [
        (f"{layer}/{kind}", f"{theirs}_{i}" if i else theirs)
        for i, layer in enumerate(_layers(), start=first)
        for kind, theirs in (("conv", "conv2d"), ("norm", "batch_normalization"))
    ]
    return Layout(
        (*rows, (r"head/dense", "predictions")),
        epsilon=1e-3,
        fields={"aux": False, "count_include_pad": False},
        absent={"scale": 1.0},
    )


_TORCHVISION = Layout(
    (
        *(
            (f"{ours}/{kind}", f"{theirs}.{their_kind}")
            for ours, theirs in (
                (r"conv1", "Conv2d_1a_3x3"),
                (r"conv2", "Conv2d_2a_3x3"),
                (r"conv3", "Conv2d_2b_3x3"),
                (r"conv4", "Conv2d_3b_1x1"),
                (r"conv5", "Conv2d_4a_3x3"),
                (r"mixed(\w+)/project", "Mixed_{1}.branch_pool"),
                (r"mixed6a/branch1_1", "Mixed_6a.branch3x3"),
                (r"mixed6a/branch2_(\d)", "Mixed_6a.branch3x3dbl_{1}"),
                (r"mixed7a/branch1_(\d)", "Mixed_7a.branch3x3_{1}"),
                (r"mixed7a/branch2_(\d)", "Mixed_7a.branch7x7x3_{1}"),
                (r"mixed(\w+)/branch1_1", "Mixed_{1}.branch1x1"),
                (r"mixed(5\w)/branch2_(\d)", "Mixed_{1}.branch5x5_{2}"),
                (r"mixed(6\w)/branch2_(\d)", "Mixed_{1}.branch7x7_{2}"),
                (r"mixed(6\w)/branch3_(\d)", "Mixed_{1}.branch7x7dbl_{2}"),
                (r"mixed(7\w)/branch2_(\d\w?)", "Mixed_{1}.branch3x3_{2}"),
                (r"mixed(\w+)/branch3_(\d\w?)", "Mixed_{1}.branch3x3dbl_{2}"),
                (r"aux1/conv(\d)", "AuxLogits.conv{1-1}"),
            )
            for kind, their_kind in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"aux1/head/dense", "AuxLogits.fc"),
        (r"head/dense", "fc"),
    ),
    epsilon=1e-3,
    fields={"count_include_pad": True},
    unused=r"AuxLogits\.",
)

LAYOUTS = {"InceptionV3": {"keras": _keras(0), "keras.io": _keras(1), "torchvision": _TORCHVISION}}
