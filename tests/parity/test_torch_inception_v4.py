"""Inception-v4 against timm."""

import re

import peers

# Of features, the first block of each of our stages.
FIRST = {
    "stem2": 3,
    "stem3": 4,
    "stem4": 5,
    "inception_a": 6,
    "reduction_a": 10,
    "inception_b": 11,
    "reduction_b": 18,
    "inception_c": 19,
}
FORKS = {"conv1": "0", "conv2a": "1a", "conv2b": "1b", "conv2": "1", "conv3": "2", "conv4a": "3a", "conv4b": "3b"}


def rename(path):
    """Our path → timm's name."""
    if path == "head/dense":
        return "last_linear"
    block, branch, conv, layer = path.split("/")
    layer = {"conv": "conv", "norm": "bn"}[layer]
    branch, number = int(branch[-1]) - 1, int(re.sub(r"\D", "", conv)) - 1
    if block == "stem1":
        return f"features.{number}.{layer}"
    stage, count = re.fullmatch(r"(.*?)(?:_(\d+))?", block).groups()
    top = f"features.{FIRST[stage] + int(count or 1) - 1}"
    if stage in ("stem2", "stem4"):
        return f"{top}.conv.{layer}"
    if branch == 0 and stage in ("inception_a", "reduction_a", "inception_b", "inception_c"):
        return f"{top}.branch0.{layer}"
    if stage == "inception_c" and branch < 3:
        return f"{top}.branch{branch}_{FORKS[conv]}.{layer}"
    pooled = branch == 3
    return f"{top}.branch{branch}.{number + pooled}.{layer}"


def test_inception_v4(timm):
    peers.check_torch(
        "inception_v4", lambda: timm.create_model("inception_v4"), rename, (75, 96), train_size=75, dropout=0.0
    )
