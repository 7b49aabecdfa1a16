"""Inception-ResNet-v2 against keras.applications."""

import re

import flax
import jax
import keras
import numpy as np
import peers

from cnnjax import models

# In the order in which Keras makes, and numbers, its layers without a name.
STAGES = ("stem1", "stem2", "mixed", "block35", "reduction_a", "block17", "reduction_b", "block8")
LAYER = r"([a-z]+\d*(?:_[ab])?)(?:_(\d+|last))?/(?:mixed/)?branch(\d)/conv(\d)"


def position(layer):
    """Stage, block, branch and convolution of ours, as numbers."""
    stage, block, branch, conv = re.fullmatch(LAYER, layer).groups()
    return STAGES.index(stage), 10 if block == "last" else int(block or 1), int(branch), int(conv)


def numbered():
    """Our convolution with BatchNorm → its number in Keras."""
    x = jax.ShapeDtypeStruct((1, 75, 75, 3), np.float32)
    params = jax.eval_shape(models.create("inception_resnet_v2").init, jax.random.key(0), x)["params"]
    layers = {"/".join(path[:-2]) for path in flax.traverse_util.flatten_dict(params) if path[-2] == "norm"}
    layers = sorted(layers - {"conv/branch1/conv1"}, key=position)
    return {layer: number for number, layer in enumerate(layers)}


def make_peer(shape):
    keras.utils.clear_session()  # its numbers begin anew
    return keras.applications.InceptionResNetV2(weights=None, input_shape=shape, classifier_activation=None)


def test_inception_resnet_v2():
    numbers = numbered()

    def rename(path):
        """Our path → Keras' layer."""
        layer, _, kind = path.rpartition("/")
        if layer == "conv/branch1/conv1":
            return "conv_7b" if kind == "conv" else "conv_7b_bn"
        if layer in numbers:
            number = f"_{numbers[layer]}" if numbers[layer] else ""
            return ("conv2d" if kind == "conv" else "batch_normalization") + number
        return {"head/dense": "predictions"}.get(path, path.replace("_last", "_10").replace("/", "_"))

    peers.check_keras("inception_resnet_v2", make_peer, rename, (75, 96), train_size=75, dropout=0.0)
