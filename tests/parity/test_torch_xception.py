"""Xception against timm, which pads its max poolings on both sides."""

import re

import peers


def rename(path):
    """Our path → timm's name."""
    if path == "head/dense":
        return "fc"
    path = re.sub(r"^stem(\d)/", r"\1/", path)
    path = re.sub(r"^exit2_sepconv(\d)/", lambda m: f"{int(m[1]) + 2}/", path)
    path = re.sub(r"^(\d)/conv", r"conv\1", path)
    path = re.sub(r"^(\d)/norm", r"bn\1", path)
    path = re.sub(r"^entry(\d)/", r"block\1/", path)
    path = re.sub(r"^middle(\d)/", lambda m: f"block{int(m[1]) + 3}/", path)
    path = re.sub(r"^exit1/", "block12/", path)
    path = path.replace("shortcut/conv", "skip").replace("shortcut/norm", "skipbn")
    first = 0 if path.startswith("block1/") else 1  # the ReLU that block1 does not begin with

    def place(m):
        return f"rep/{3 * (int(m[1]) - 1) + first + (m[2] == 'norm')}"

    path = re.sub(r"sepconv(\d)/(conv|norm)", place, path)
    return path.replace("depthwise", "conv1").replace("/", ".")


def test_xception(timm):
    peers.check_torch(
        "xception",
        lambda: timm.create_model("legacy_xception"),
        rename,
        (64, 75),
        train_size=64,
        padding=1,
        epsilon=1e-5,
        momentum=0.9,
        dropout=0.0,
    )
