"""ResNet with its strides as Keras has them, and pre-activation, against keras.applications."""

import keras
import peers
import pytest


@pytest.mark.exhaustive
def test_resnet_v1():
    """ResNet-50; the deeper ones are compared in the parity suite."""
    peers.check_keras(
        "resnet50_v1",
        lambda shape: keras.applications.ResNet50(weights=None, input_shape=shape, classifier_activation=None),
        (64, 97),
        saved="h5",
        residual="_3_bn$",
    )


@pytest.mark.exhaustive
def test_resnet_v2():
    make = keras.applications.ResNet50V2
    peers.check_keras(
        "resnet50_v2",
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        (64, 97),
    )
