"""Inception-ResNet-v2 against keras.applications."""

import keras
import peers


def make_peer(shape):
    keras.utils.clear_session()  # numbers layers from zero again
    return keras.applications.InceptionResNetV2(weights=None, input_shape=shape, classifier_activation=None)


def test_inception_resnet_v2():
    peers.check_keras("inception_resnet_v2", make_peer, (75, 96), train_size=75, dropout=0.0)
