"""Checkpoints as training loops leave them: wrapped, prefixed, with other heads, in Keras models; other files."""

import functools
import random
import resource
import time

import jax
import keras
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import save_file
from torch_by_hand import X, dictionary, load, pickled, same, tensor, text, zipped

from cnnjax import models, weights
from cnnjax.models.resnet import ResNet
from cnnjax.types import UserError
from cnnjax.weights import layouts, rules


@functools.cache
def state(classes):
    """Arrays of a ResNet with a block in each stage, by torchvision's names."""
    model, rng = ResNet((1, 1, 1, 1), num_classes=classes), np.random.default_rng(0)
    layout, slots = layouts.for_model(model)["torch"], rules.structure(model, model.image_shape).slots
    return {rules.target(layout, "torch", path): torch_like(rng, slot.shape) for path, slot in slots.items()}


def torch_like(rng, shape):
    """Random values of a slot, with the axes as torch orders them."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
    return rng.random([shape[axis] for axis in order], np.float32)


def saved(path, arrays):
    save_file({key: np.ascontiguousarray(x) for key, x in arrays.items()}, path)
    return path


def model(classes):
    return ResNet((1, 1, 1, 1), num_classes=classes)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
    )


# ---- prefixes and wrappers ----


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "module.encoder.", "net.a.b."]
)
def test_prefixes_are_taken_off_and_said(tmp_path, prefix, capsys):
    plain = weights.load(saved(tmp_path / "plain.safetensors", state(10)), model(10))
    path = saved(tmp_path / "it.safetensors", {prefix + key: x for key, x in state(10).items()})
    assert equal(weights.load(path, model(10)), plain)
    assert f"prefix {prefix!r} taken off" in capsys.readouterr().err


def test_of_a_network_and_its_average_the_average_is_taken(tmp_path, capsys):
    average = {f"model_ema.module.{key}": 2 * x for key, x in state(10).items()}
    path = saved(tmp_path / "it.safetensors", {**{f"model.{key}": x for key, x in state(10).items()}, **average})
    found = weights.load(path, model(10))
    plain = weights.load(saved(tmp_path / "plain.safetensors", state(10)), model(10))
    assert equal(found["params"], jax.tree.map(lambda x: 2 * x, plain["params"]))
    assert "a moving average" in capsys.readouterr().err
    both = {
        **{f"student.{key}": x for key, x in state(10).items()},
        **{f"teacher.{key}": x for key, x in state(10).items()},
    }
    with pytest.raises(UserError, match=r"holds 2 networks, under .*: save one with torch"):
        weights.load(saved(tmp_path / "two.safetensors", both), model(10))


OTHER = dictionary(text("v"), tensor(offset=0))


@pytest.mark.parametrize(
    "names",
    [
        ("state_dict", "optimizer"),
        ("model_state_dict", "optimizer_state_dict"),
        ("model", "lr_scheduler"),
        ("net", "loss"),
        ("model_ema", "model"),
        ("state_dict_ema", "state_dict"),
        ("ema", "network"),
    ],
)
def test_the_state_dict_is_found_in_what_a_loop_saves(tmp_path, names):
    inside = dictionary(text(names[0]), dictionary(text("w"), tensor()), text(names[1]), OTHER, text("epoch"), b"K\x03")
    assert same(load(tmp_path / "it.pth", zipped(pickled(inside))), {"w": X})


# ---- heads ----


def test_the_head_of_another_number_of_classes(tmp_path):
    path = saved(tmp_path / "five.safetensors", state(5))
    with pytest.raises(
        UserError, match='its head has 5 classes: give num_classes=5; or head="new" starts a head of 10'
    ):
        weights.load(path, model(10))
    assert weights.load(path, model(5))["params"]["head"]["dense"]["bias"].shape == (5,)
    body = weights.load(path, model(None))
    new = weights.load(path, model(10), head="new")
    assert "head" not in body["params"]
    assert new["params"].pop("head")["dense"]["bias"].shape == (10,)
    assert equal(body, new)


@pytest.mark.parametrize("names", [("fc.1.",), ("classifier.0.", "classifier.3."), ("head.",)])
def test_a_head_of_any_name_stays_out_where_none_is_wanted(tmp_path, names, capsys):
    arrays = {key: x for key, x in state(10).items() if not key.startswith("fc.")}
    plain = weights.load(saved(tmp_path / "plain.safetensors", arrays), model(None))
    own = {
        f"{name}{part}": np.ones(shape, np.float32)
        for name in names
        for part, shape in (("weight", (5, 512)), ("bias", 5))
    }
    path = saved(tmp_path / "own.safetensors", {**arrays, **own})
    assert equal(weights.load(path, model(None)), plain)
    assert "left out: " in capsys.readouterr().err
    found = weights.load(path, model(7), head="new")["params"]
    assert found["head"]["dense"]["kernel"].shape == (2048, 7)
    with pytest.raises(UserError, match='head="new" starts a head of 10 classes'):
        weights.load(path, model(10))


@pytest.mark.exhaustive
def test_a_body_alone_loads_and_a_part_of_it_does_not(tmp_path):
    arrays = {key: x for key, x in state(10).items() if not key.startswith("fc.")}
    path = saved(tmp_path / "body.safetensors", arrays)
    assert "head" not in weights.load(path, model(None))["params"]
    with pytest.raises(UserError, match='it has no head; head="new" starts a head of 10 classes'):
        weights.load(path, model(10))
    del arrays["layer4.0.conv2.weight"]
    with pytest.raises(UserError, match=r"params/stage4/block1/conv2/.* \(their layer4\.0\.conv2\.weight\)"):
        weights.load(saved(tmp_path / "part.safetensors", arrays), model(None))


def test_the_variant_that_a_file_fits_is_named(tmp_path):
    found = models.create("mobilenet_v2", num_classes=10)
    layout, slots = layouts.for_model(found)["torchvision"], rules.structure(found, found.image_shape).slots
    rng = np.random.default_rng(0)
    arrays = {rules.target(layout, "torch", path): torch_like(rng, slot.shape) for path, slot in slots.items()}
    path = saved(tmp_path / "m.safetensors", arrays)
    with pytest.raises(UserError, match="its layers are named as those of a MobileNetV2") as caught:
        weights.load(path, models.create("resnet18", num_classes=10))
    assert len(str(caught.value).splitlines()) <= 12


# ---- Keras ----


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A MobileNet as Keras' guides fine-tune it in two forms, and its base; and the folder with their files."""
    keras.utils.set_random_seed(0)
    options = {"input_shape": (64, 64, 3), "alpha": 0.25, "include_top": False, "weights": None}
    base = keras.applications.MobileNet(**options)
    base.set_weights([np.random.default_rng(i).random(x.shape, np.float32) for i, x in enumerate(base.get_weights())])
    x = inputs = keras.Input((64, 64, 3))
    x = layers.RandomFlip("horizontal")(x)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    nested = keras.Model(inputs, layers.Dense(5, name="predictions")(layers.Dropout(0.2)(x)))
    flat = keras.Sequential([keras.Input((64, 64, 3)), base, layers.GlobalAveragePooling2D(), layers.Dense(5)])
    folder = tmp_path_factory.mktemp("tuned")
    for name, net in (("nested", nested), ("flat", flat), ("base", base)):
        net.save(folder / f"{name}.keras")
        net.save_weights(folder / f"{name}.weights.h5")
    nested.save(folder / "nested.h5")
    return {"nested": nested, "flat": flat, "base": base}, folder


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("nested.keras", marks=pytest.mark.exhaustive),
        pytest.param("nested.weights.h5", marks=pytest.mark.exhaustive),
        pytest.param("nested.h5", marks=pytest.mark.exhaustive),
        "flat.keras",
        "flat.weights.h5",
    ],
)
def test_a_fine_tuned_keras_model_gives_the_same_logits_and_a_base(tuned, file, capsys):
    nets, folder = tuned
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    ready = images / 127.5 - 1
    kind = file.partition(".")[0]
    expected = nets[kind].predict(images if kind == "nested" else ready, verbose=0)
    whole = models.create("mobilenet_v1", width=0.25, num_classes=5)
    found, _ = whole.apply(weights.load(folder / file, whole, image_size=64), ready)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    printed = capsys.readouterr().err
    assert ("rescaling stays out: give images prepared as it does" in printed) == (kind == "nested")
    body = models.create("mobilenet_v1", width=0.25, num_classes=None)
    alone = weights.load(folder / "base.keras", body, image_size=64)
    assert equal(weights.load(folder / file, body, image_size=64), alone)
    assert equal(weights.load(folder / "base.weights.h5", body, image_size=64), alone)


# ---- other kinds ----


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "w.pth",
            b"version https://git-lfs.github.com/spec/v1\nsize 46827520\n",
            "Git LFS to 46,827,520 bytes.*git lfs pull",
        ),
        ("w.h5", b"<!DOCTYPE html><title>Virus scan warning</title>", 'a web page with the title "Virus scan warning"'),
        ("w.npy", b"\x93NUMPY\x01\x00" + bytes(80), "a single array of NumPy, without a name: .*savez"),
        ("w.tflite", bytes(4) + b"TFL3" + bytes(80), "a TensorFlow Lite model"),
        ("w.onnx", b"\x08\x07\x12\x07pytorch" + bytes(80), "an ONNX model: .*initializer"),
        ("w.caffemodel", b"\x0a\x09", "of Caffe: "),
        ("w.pth", b"\x1f\x8b\x08" + bytes(80), "is compressed: unpack it"),
    ],
)
def test_files_of_other_kinds_are_named_with_a_way(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        weights.load(tmp_path / name, model(10))
    assert len(str(caught.value).splitlines()) == 1


def test_the_same_values_are_saved_as_the_same_bytes(tmp_path):
    variables = weights.load(saved(tmp_path / "w.safetensors", state(10)), model(10))
    weights.save(tmp_path / "a.safetensors", variables, model(10))
    turned = {name: dict(reversed(tree.items())) for name, tree in reversed(variables.items())}
    weights.save(tmp_path / "b.safetensors", turned, model(10))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# ---- damage ----


def mutated(rng, content):
    """Content with one to three changes: cut, overwritten, doubled or moved, near its ends more often."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        size, end = rng.choice([1, 1, 2, 8, 64]), len(content)
        start = rng.choice(
            [rng.randrange(end + 1), rng.randrange(min(end, 600) + 1), end - rng.randrange(min(end, 600) + 1)]
        )
        kind = rng.randrange(5)
        if kind == 0:
            del content[start:]
        elif kind == 1:
            del content[start : start + size]
        elif kind == 2:
            content[start:start] = content[start : start + size]
        else:
            odd = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size), b"9" * size, b"[" * size])
            content[start : start + size] = odd
    return bytes(content)


def test_a_thousand_damaged_files_give_weights_or_one_error(tmp_path, tuned):
    net = models.create("lenet5_modern")
    variables = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(0), np.zeros((1, *net.image_shape))))
    flat = {"/".join(str(part.key) for part in path): x for path, x in jax.tree_util.tree_leaves_with_path(variables)}
    weights.save(tmp_path / "ours.safetensors", variables, net)
    save_file(flat, tmp_path / "other.safetensors")
    np.savez(tmp_path / "w.npz", **flat)
    small = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(5)])
    small.save(tmp_path / "w.keras")
    small.save_weights(tmp_path / "w.weights.h5")
    inside = dictionary(text("net"), dictionary(text("w"), tensor()), text("optimizer"), OTHER, text("epoch"), b"K\x03")
    (tmp_path / "w.pth").write_bytes(zipped(pickled(inside)))
    whole = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    rng, errors = random.Random(0), 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 2**20  # in KiB: 1 GiB more than before
    for i in range(1000):
        path = list(whole)[i % len(whole)]
        damaged = tmp_path / f"damaged{''.join(path.suffixes)}"
        damaged.write_bytes(mutated(rng, whole[path]))
        began = time.perf_counter()
        try:
            weights.load(damaged, net)
        except UserError as error:
            errors += 1
            if len(str(error).splitlines()) > 12:
                raise
        assert time.perf_counter() - began < 1, (i, path)
    assert 500 < errors < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most
