"""Inception v3 against keras.applications."""

import re

import keras
import peers

# Keras numbers its layers as they are made: module by module, branch by branch.
LAYERS = [f"conv{i}" for i in range(1, 6)]
BRANCHES = {
    "5": ("1_1", "2_1", "2_2", "3_1", "3_2", "3_3"),
    "6a": ("1_1", "2_1", "2_2", "2_3"),
    "6": ("1_1", "2_1", "2_2", "2_3", "3_1", "3_2", "3_3", "3_4", "3_5"),
    "7a": ("1_1", "1_2", "2_1", "2_2", "2_3", "2_4"),
    "7": ("1_1", "2_1", "2_2a", "2_2b", "3_1", "3_2", "3_3a", "3_3b"),
}
for module in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
    LAYERS += [f"mixed{module}/branch{name}" for name in BRANCHES.get(module, BRANCHES[module[0]])]
    if module not in ("6a", "7a"):
        LAYERS.append(f"mixed{module}/project")


def rename(path):
    """Our path → Keras' layer."""
    if path == "head/dense":
        return "predictions"
    layer, kind = re.fullmatch("(.*)/(conv|norm)", path).groups()
    number = LAYERS.index(layer)
    return ("conv2d" if kind == "conv" else "batch_normalization") + (f"_{number}" if number else "")


def make(shape):
    keras.utils.clear_session()  # numbers layers from zero again
    return keras.applications.InceptionV3(weights=None, input_shape=shape, classifier_activation=None)


def test_inception_v3():
    peers.check_keras(
        "inception_v3",
        make,
        rename,
        (76, 107),
        train_size=107,
        absent={"scale": 1.0},
        aux=False,
        dropout=0.0,
        count_include_pad=False,
        momentum=0.99,
    )
