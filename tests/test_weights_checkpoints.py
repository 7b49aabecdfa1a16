"""Checkpoints with parts of networks, choices that are said, and Keras' own preparation of images."""

import keras
import numpy as np
import pytest
import torch_by_hand as hand
from keras import layers
from safetensors.numpy import save_file

from cnnjax import models, weights
from cnnjax.types import UserError
from cnnjax.weights import formats, layouts, names, own, rules
from cnnjax.weights.rules import Slot


def state(name, label="torch", **fields):
    """Arrays by a publisher's names, all 0.5."""
    model = models.create(name, **fields)
    layout, slots = layouts.for_model(model)[label], rules.structure(model, model.image_shape).slots
    turned = {2: (1, 0), 4: (3, 2, 0, 1)}
    shapes = {p: tuple(s.shape[i] for i in turned.get(len(s.shape), range(len(s.shape)))) for p, s in slots.items()}
    return {rules.target(layout, "torch", path): np.full(shape, 0.5, np.float32) for path, shape in shapes.items()}


@pytest.fixture(scope="module")
def resnet18():
    return state("resnet18", num_classes=5)


def load(path, arrays, name="resnet18", head="strict", **fields):
    save_file(arrays, path / "w.safetensors")
    return weights.load(path / "w.safetensors", models.create(name, **fields), head=head)


def under(prefix, arrays):
    return {prefix + key: x for key, x in arrays.items()}


def test_what_lies_within_the_body_is_no_head(tmp_path, resnet18, monkeypatch):
    monkeypatch.setattr(own, "variants", lambda model: {})  # else all are tried
    extra = {"layer1.0.attention.weight": np.ones((3, 3), np.float32)}
    with pytest.raises(UserError, match=r"layer1\.0\.attention\.weight"):
        load(tmp_path, resnet18 | extra, num_classes=None)


def test_features_without_their_name_load_without_dense_layers(tmp_path, capsys):
    whole = state("vgg16", "torchvision vgg16")
    features = {key.removeprefix("features."): x for key, x in whole.items() if key.startswith("features.")}
    assert load(tmp_path, under("backbone.", features), "vgg16", num_classes=None)
    assert "'features.' put before its keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (("net",), "its 'net'"),
        (("optimizer", "model_state_dict"), "its 'model_state_dict'"),
        (("state_dict", "state_dict_ema"), "its 'state_dict_ema', a moving average; its 'state_dict' stays out"),
        (("model", "model_ema"), "its 'model_ema', a moving average"),
    ],
)
def test_wrappers(tmp_path, saved, says):
    inner = hand.dictionary(hand.text("w"), hand.tensor())
    data = hand.zipped(hand.pickled(hand.dictionary(*(x for name in saved for x in (hand.text(name), inner)))))
    (tmp_path / "w.pth").write_bytes(data)
    with formats.opened(tmp_path / "w.pth") as content:
        assert list(content.tensors) == ["w"]
        assert says in content.notes[0]


def test_two_unknown_networks_are_refused(tmp_path):
    inner = hand.dictionary(hand.text("w"), hand.tensor())
    saved = hand.dictionary(hand.text("generator"), inner, hand.text("critic"), inner)
    hand.refused(tmp_path / "w.pth", hand.zipped(hand.pickled(saved)), "2 state dicts", "'generator', 'critic'")


@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "h5"])
def test_a_network_that_keras_fine_tuned(tmp_path, capsys, suffix):
    base = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None)
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).uniform(size=(4, 32, 32, 3)))
    before = [keras.Input((32, 32, 3)), layers.RandomFlip(), layers.Rescaling(2.0), norm]
    tuned = keras.Sequential([*before, base, layers.GlobalAveragePooling2D(), layers.Dense(5)])
    path = tmp_path / f"w.{suffix}"
    (tuned.save_weights if "weights" in suffix else tuned.save)(path)
    for classes in (None, 5):
        found = weights.load(path, models.create("mobilenet_v1", width=0.25, num_classes=classes), image_size=32)
        assert ("head" in found["params"]) == (classes == 5)
        said = capsys.readouterr().err
        assert "rescaling" in said
        assert "normalization" in said
    np.testing.assert_array_equal(found["params"]["head"]["dense"]["kernel"], tuned.layers[-1].kernel)


def test_layers_numbered_from_another_start_are_matched_by_order():
    slots = {f"conv2d{i}/kernel": Slot((3, n), np.dtype("f4")) for i, n in (("", 2), ("_1", 4))}
    found = names.renumbered({f"conv2d_{94 + i}/kernel": x for i, x in enumerate(slots.values())}, slots)
    assert found.tensors == slots
    assert "conv2d_94" in found.notes[0]


def test_a_saved_model_folder_is_named(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match="is a TensorFlow SavedModel"):
        weights.load(tmp_path, models.create("resnet18"))
