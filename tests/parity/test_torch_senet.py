"""SENet-154 against timm."""

import re

import peers


def rename(path):
    """Our path → timm's name."""
    if (match := re.fullmatch(r"stem(\d)/(conv|norm)", path)) is not None:
        return f"layer0.{'bn' if match[2] == 'norm' else 'conv'}{match[1]}"
    path = re.sub(r"stage(\d)/block(\d+)/", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.", path)
    path = re.sub(r"conv(\d)/(conv|norm)$", lambda m: f"{'bn' if m[2] == 'norm' else 'conv'}{m[1]}", path)
    path = path.replace("shortcut/conv", "downsample.0").replace("shortcut/norm", "downsample.1")
    path = path.replace("se/reduce", "se_module.fc1").replace("se/expand", "se_module.fc2")
    return path.replace("head/dense", "last_linear")


def test_senet154(timm):
    peers.check_torch(
        "senet154",
        lambda: timm.create_model("legacy_senet154", drop_rate=0.0),
        rename,
        (32, (35, 49)),
        train_size=32,
        residual=r"layer.*bn3$",
        dropout=0.0,
    )
