"""Inception-v4 in timm's files, Inception-ResNet-v2 in files of Keras and timm."""

from collections.abc import Iterator

from cnnjax.weights.layouts import Layout

_ONE, _POOLED, _CHAIN = ("1/conv1", "0"), ("4/conv1", "3.1"), (r"(\d)/conv(\d)", "{1-1}.{2-1}")
_FORKED = (r"(\d)/conv(\d)([ab]?)", "{1-1}_{2-1}{3}")
_TIMM = Layout(
    (
        *(
            (f"{ours}/{kind}", f"features.{theirs}.{their_kind}")
            for ours, theirs in (
                (r"stem1/branch1/conv(\d)", "{1-1}"),
                (r"stem2/branch2/conv1", "3.conv"),
                (r"stem4/branch1/conv1", "5.conv"),
                *(
                    (f"{block}/branch{branch}", f"{place}.branch{their_branch}")
                    for block, place, rules in (
                        ("stem3", 4, (_CHAIN,)),
                        *((f"inception_a_{i}", 5 + i, (_ONE, _POOLED, _CHAIN)) for i in range(1, 5)),
                        ("reduction_a", 10, (_ONE, _CHAIN)),
                        *((f"inception_b_{i}", 10 + i, (_ONE, _POOLED, _CHAIN)) for i in range(1, 8)),
                        ("reduction_b", 18, (_CHAIN,)),
                        *((f"inception_c_{i}", 18 + i, (_ONE, _POOLED, _FORKED)) for i in range(1, 4)),
                    )
                    for branch, their_branch in rules
                ),
            )
            for kind, their_kind in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"head/dense", "last_linear"),
    ),
    epsilon=1e-3,
)


# Of Inception-ResNet-v2: stage, its blocks, where in a block the branches are, convolutions with BatchNorm in each.
_STAGES = (
    ("stem1", 1, "", (3,)),
    ("stem2", 1, "", (2,)),
    ("mixed", 1, "", (1, 2, 3, 1)),
    ("block35", 10, "/mixed", (1, 2, 3)),
    ("reduction_a", 1, "", (1, 3)),
    ("block17", 20, "/mixed", (1, 3)),
    ("reduction_b", 1, "", (2, 2, 3)),
    ("block8", 9, "/mixed", (1, 3)),
    ("block8_last", 1, "/mixed", (1, 3)),
)


def _layers() -> Iterator[str]:
    """Convolutions with BatchNorm of Inception-ResNet-v2, in the order in which Keras creates and so numbers them."""
    for stage, blocks, inner, branches in _STAGES:
        for block in [stage] if blocks == 1 else [f"{stage}_{i + 1}" for i in range(blocks)]:
            for i, convs in enumerate(branches, start=1):
                yield from (f"{block}{inner}/branch{i}/conv{j + 1}" for j in range(convs))


def _keras(first: int) -> Layout:
    """Keras' names, numbered from ``first``: 0 today, 1 in the file on keras.io."""
    rows = [
        (f"{layer}/{kind}", f"{theirs}_{i}" if i else theirs)
        for i, layer in enumerate(_layers(), start=first)
        for kind, theirs in (("conv", "conv2d"), ("norm", "batch_normalization"))
    ]
    rows += [
        (r"block8_last/conv", "block8_10_conv"),
        (r"(block\d+_\d+)/conv", "{1}_conv"),
        (r"conv/branch1/conv1/conv", "conv_7b"),
        (r"conv/branch1/conv1/norm", "conv_7b_bn"),
        (r"head/dense", "predictions"),
    ]
    return Layout(tuple(rows), epsilon=1e-3)


_TIMM_RESNET = Layout(
    (
        *(
            (f"{ours}/{kind}", f"{theirs}.{their_kind}")
            for ours, theirs in (
                *((f"stem1/branch1/conv{i}", f"conv2d_{name}") for i, name in enumerate(("1a", "2a", "2b"), 1)),
                *((f"stem2/branch1/conv{i}", f"conv2d_{name}") for i, name in enumerate(("3b", "4a"), 1)),
                (r"mixed/branch4/conv1", "mixed_5b.branch3.1"),
                (r"mixed/branch1/conv1", "mixed_5b.branch0"),
                (r"mixed/branch(\d)/conv(\d)", "mixed_5b.branch{1-1}.{2-1}"),
                (r"reduction_a/branch1/conv1", "mixed_6a.branch0"),
                (r"reduction_a/branch2/conv(\d)", "mixed_6a.branch1.{1-1}"),
                (r"reduction_b/branch(\d)/conv(\d)", "mixed_7a.branch{1-1}.{2-1}"),
                *(
                    (f"{block}/mixed/branch{branch}", f"{place}.branch{their_branch}")
                    for block, place in (
                        (r"block35_(\d+)", "repeat.{1-1}"),
                        (r"block17_(\d+)", "repeat_1.{1-1}"),
                        (r"block8_(\d+)", "repeat_2.{1-1}"),
                    )
                    for branch, their_branch in (("1/conv1", "0"), (r"(\d)/conv(\d)", "{2-1}.{3-1}"))
                ),
                (r"block8_last/mixed/branch1/conv1", "block8.branch0"),
                (r"block8_last/mixed/branch2/conv(\d)", "block8.branch1.{1-1}"),
                (r"conv/branch1/conv1", "conv2d_7b"),
            )
            for kind, their_kind in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"block35_(\d+)/conv", "repeat.{1-1}.conv2d"),
        (r"block17_(\d+)/conv", "repeat_1.{1-1}.conv2d"),
        (r"block8_(\d+)/conv", "repeat_2.{1-1}.conv2d"),
        (r"block8_last/conv", "block8.conv2d"),
        (r"head/dense", "classif"),
    ),
    epsilon=1e-3,
)

LAYOUTS = {
    "InceptionV4": {"timm": _TIMM},
    "InceptionResNetV2": {"keras": _keras(0), "keras.io": _keras(1), "timm": _TIMM_RESNET},
}
