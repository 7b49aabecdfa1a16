"""ResNet-101 and ResNet-152 with their strides as Keras has them, against keras.applications."""

import keras
import peers
import pytest


@pytest.mark.parametrize(
    ("name", "application", "saved"),
    [("resnet101_v1", "ResNet101", "keras"), ("resnet152_v1", "ResNet152", "weights.h5")],
)
def test_resnet_v1(name, application, saved):
    make = getattr(keras.applications, application)
    peers.check_keras(
        name,
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        (64, 97),
        saved=saved,
        residual="_3_bn$",
    )
