"""Xception against keras.applications."""

import re

import keras
import peers

SHORTCUTS = ("entry1", "entry2", "entry3", "exit1")  # in the order in which Keras numbers them
BLOCKS = {"entry1": 2, "entry2": 3, "entry3": 4, **{f"middle{i}": 4 + i for i in range(1, 9)}, "exit1": 13}


def rename(path):
    """Our path → Keras' layer, or layer and weight of the two parts of a separable convolution."""
    if path == "head/dense":
        return "predictions"
    layer, *rest = path.split("/")
    if rest[0] == "shortcut":
        number = SHORTCUTS.index(layer)
        return {"conv": "conv2d", "norm": "batch_normalization"}[rest[1]] + (f"_{number}" if number else "")
    if match := re.fullmatch(r"stem(\d)", layer):
        name = f"block1_conv{match[1]}"
    elif match := re.fullmatch(r"exit2_(sepconv\d)", layer):
        name = f"block14_{match[1]}"
    else:
        name = f"block{BLOCKS[layer]}_{rest.pop(0)}"
    if rest[0] == "norm":
        return f"{name}_bn"
    return name if rest == ["conv"] else (name, f"{rest[1]}_kernel")


def make_peer(shape):
    keras.utils.clear_session()  # its numbers begin anew
    return keras.applications.Xception(weights=None, input_shape=shape, classifier_activation=None)


def test_xception():
    # At 71 all that is pooled has odd sizes, at 78 also even ones, which "SAME" pads on one side.
    peers.check_keras("xception", make_peer, rename, (71, 78), train_size=71, dropout=0.0)
