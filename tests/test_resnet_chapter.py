"""The chapter's ResNet-34 against the chapter's own code, and the promises of every family."""

import types

import keras
import numpy as np
import peers
import promises
import pytest

from cnnjax.weights import layouts


class ResidualUnit(keras.layers.Layer):
    """The chapter's code."""

    def __init__(self, filters, strides=1, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.main_layers = [
            keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            self.activation,
            keras.layers.Conv2D(filters, 3, strides=1, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
        ]
        self.skip_layers = []
        if strides > 1:
            self.skip_layers = [
                keras.layers.Conv2D(filters, 1, strides=strides, padding="same", use_bias=False),
                keras.layers.BatchNormalization(),
            ]

    def call(self, inputs):
        Z = inputs
        for layer in self.main_layers:
            Z = layer(Z)
        skip_Z = inputs
        for layer in self.skip_layers:
            skip_Z = layer(skip_Z)
        return self.activation(Z + skip_Z)


def chapter_model(shape):
    """The chapter's code, for images of any shape and without the softmax."""
    model = keras.models.Sequential()
    model.add(keras.Input(shape))
    model.add(keras.layers.Conv2D(64, 7, strides=2, padding="same", use_bias=False))
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.Activation("relu"))
    model.add(keras.layers.MaxPool2D(pool_size=3, strides=2, padding="same"))
    prev_filters = 64
    for filters in [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3:
        strides = 1 if filters == prev_filters else 2
        model.add(ResidualUnit(filters, strides=strides))
        prev_filters = filters
    model.add(keras.layers.GlobalAvgPool2D())
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(10))
    return model


def peer(shape):
    """The chapter's model with its units' layers in one list, each named after ours."""
    model = chapter_model(shape)
    named = {"stem/conv": model.layers[0], "stem/norm": model.layers[1], "head/dense": model.layers[-1]}
    units = [layer for layer in model.layers if isinstance(layer, ResidualUnit)]
    for i, unit in enumerate(units, start=1):
        conv1, norm1, _, conv2, norm2 = unit.main_layers
        named |= {f"unit{i}/main1/conv": conv1, f"unit{i}/main1/norm": norm1}
        named |= {f"unit{i}/main2/conv": conv2, f"unit{i}/main2/norm": norm2}
        if unit.skip_layers:
            named[f"unit{i}/skip/conv"], named[f"unit{i}/skip/norm"] = unit.skip_layers
    for name, layer in named.items():
        layer.name = name.replace("/", "_")
    values = {f"{layer.name}/{w.name}": w for layer in named.values() for w in layer.weights}
    return types.SimpleNamespace(
        layers=list(named.values()),
        save=lambda path: np.savez(path, **{name: w.numpy() for name, w in values.items()}),
        stateless_call=model.stateless_call,
        trainable_variables=model.trainable_variables,
        non_trainable_variables=model.non_trainable_variables,
    )


@pytest.mark.exhaustive
def test_is_the_chapters_model(monkeypatch):
    """The weights are read by the names that ``peer`` gives."""
    layout = layouts.Layout(((r"(\w+)/(\w+)", "{1}_{2}"), (r"(\w+)/(\w+)/(\w+)", "{1}_{2}_{3}")))
    monkeypatch.setitem(layouts.tables(), "ResNet34", {"keras": layout})
    peers.check_keras("resnet34_chapter", peer, (64, 97), saved="npz", residual="main2_norm$")


def test_count():
    """The count is that of ``resnet34`` except for the number of classes."""
    resnet34 = promises.counts("resnet34", num_classes=10)
    assert promises.counts("resnet34_chapter") == resnet34
    assert resnet34[0] == 21_797_672 - 990 * 513


@pytest.mark.exhaustive
def test_remat():
    promises.check_remat("resnet34_chapter", 32)


def test_sizes():
    promises.check_sizes("resnet34_chapter", 1)
