"""Inception v3 against keras.applications."""

import keras
import peers
import pytest


def make(shape):
    keras.utils.clear_session()  # numbers layers from zero again
    return keras.applications.InceptionV3(weights=None, input_shape=shape, classifier_activation=None)


@pytest.mark.exhaustive
def test_inception_v3():
    peers.check_keras(
        "inception_v3",
        make,
        (76, 107),
        saved="keras",
        train_size=107,
        aux=False,
        dropout=0.0,
        count_include_pad=False,
        momentum=0.99,
    )
