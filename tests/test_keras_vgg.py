"""VGG against keras.applications."""

import keras
import peers
import pytest


@pytest.mark.parametrize(
    ("name", "application", "saved"),
    [("vgg16", "VGG16", "h5"), ("vgg19", "VGG19", "keras")],
)
@pytest.mark.exhaustive
def test_vgg(name, application, saved):
    make = getattr(keras.applications, application)
    peers.check_keras(
        name,
        lambda shape: make(weights=None, input_shape=shape, classifier_activation=None),
        (48, (65, 33)),
        saved=saved,
        train_size=32,
        batch=2,
        dropout=0.0,  # Keras has none
    )
