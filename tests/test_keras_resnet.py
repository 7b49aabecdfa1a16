"""ResNet with its strides as Keras has them, and pre-activation, against keras.applications."""

import keras
import peers
import pytest


@pytest.mark.parametrize(
    ("name", "application", "saved"),
    [
        ("resnet50_v1", "ResNet50", "h5"),
        ("resnet101_v1", "ResNet101", "keras"),
        ("resnet152_v1", "ResNet152", "weights.h5"),
    ],
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


def test_resnet_v2():
    make = keras.applications.ResNet50V2
    peers.check_keras(
        "resnet50_v2",
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        (64, 97),
    )
