"""Inception v3 against torchvision."""

import re

import peers

BRANCHES = {  # by module: its branches' names and, where their layers do not end in 1, 2, …, how they end
    "5": {1: ("1x1", ("",)), 2: ("5x5", "12"), 3: ("3x3dbl", "123")},
    "6a": {1: ("3x3", ("",)), 2: ("3x3dbl", "123")},
    "6": {1: ("1x1", ("",)), 2: ("7x7", "123"), 3: ("7x7dbl", "12345")},
    "7a": {1: ("3x3", "12"), 2: ("7x7x3", "1234")},
    "7": {1: ("1x1", ("",)), 2: ("3x3", "12"), 3: ("3x3dbl", "123")},
}
STEM = {"conv1": "1a_3x3", "conv2": "2a_3x3", "conv3": "2b_3x3", "conv4": "3b_1x1", "conv5": "4a_3x3"}


def rename(path):
    """Our path → torchvision's name."""
    path = path.replace("/norm", "/bn").replace("/project/", "/branch_pool/")
    if path == "head/dense":
        return "fc"
    if path.startswith("aux1"):
        path = path.replace("aux1", "AuxLogits").replace("conv1", "conv0").replace("conv2", "conv1")
        return path.replace("head/dense", "fc").replace("/", ".")
    if found := re.match(r"mixed(.)(.)/branch(\d)_(\d)([ab]?)/", path):
        stage, letter, branch, layer, part = found.groups()
        name, ends = BRANCHES.get(stage + letter, BRANCHES[stage])[int(branch)]
        end = ends[int(layer) - 1]
        path = path.replace(f"branch{branch}_{layer}{part}", f"branch{name}{end and '_'}{end}{part}")
    path = re.sub("^mixed", "Mixed_", path)
    stem = path.split("/")[0]
    return path.replace(stem, f"Conv2d_{STEM[stem]}" if stem in STEM else stem).replace("/", ".")


def outputs(result):
    return list(result) if isinstance(result, tuple) else [result]


def test_inception_v3(torchvision):
    peers.check_torch(
        "inception_v3",
        lambda: torchvision.models.Inception3(init_weights=False, dropout=0.0),
        rename,
        (96, 107),
        train_size=299,  # the smallest that its auxiliary head admits
        batch=2,
        outputs=outputs,
        dropout=0.0,
    )
