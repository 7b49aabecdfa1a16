"""VGG against keras.applications."""

import re

import keras
import peers
import pytest


def rename(path):
    """Our path → Keras' layer."""
    return re.sub(r"^(block\d)/", r"\1_", path).replace("head/dense", "predictions")


@pytest.mark.parametrize(("name", "application"), [("vgg16", "VGG16"), ("vgg19", "VGG19")])
def test_vgg(name, application):
    make = getattr(keras.applications, application)
    peers.check_keras(
        name,
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        rename,
        (48, (65, 33)),
        train_size=32,
        batch=2,
        dropout=0.0,  # Keras has none
    )
