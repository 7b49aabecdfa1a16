"""MobileNet and MobileNetV2 against keras.applications."""

import keras
import peers
import pytest


@pytest.mark.exhaustive
@pytest.mark.parametrize(("width", "saved"), [(1.0, "h5"), (0.75, "keras")])
def test_mobilenet_v1(width, saved):
    peers.check_keras(
        "mobilenet_v1",
        lambda shape: keras.applications.MobileNet(
            weights=None, input_shape=shape, alpha=width, dropout=0.0, classifier_activation=None
        ),
        (64, (97, 64)),
        saved=saved,
        width=width,
        dropout=0.0,
    )


@pytest.mark.parametrize(("width", "saved"), [(1.0, "weights.h5"), (0.5, "h5")])
@pytest.mark.exhaustive
def test_mobilenet_v2(width, saved):
    peers.check_keras(
        "mobilenet_v2",
        lambda shape: keras.applications.MobileNetV2(
            weights=None, input_shape=shape, alpha=width, classifier_activation=None
        ),
        (64, (97, 64)),
        saved=saved,
        width=width,
        dropout=0.0,
    )
