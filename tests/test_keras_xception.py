"""Xception against keras.applications."""

import keras
import peers
import pytest


def make_peer(shape):
    keras.utils.clear_session()  # numbers layers from zero again
    return keras.applications.Xception(weights=None, input_shape=shape, classifier_activation=None)


@pytest.mark.exhaustive
def test_xception():
    # At 71 all that is pooled has odd sizes, at 78 also even ones, which "SAME" pads on one side.
    peers.check_keras("xception", make_peer, (71, 78), saved="h5", train_size=71, dropout=0.0)
