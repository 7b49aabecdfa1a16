"""Files of weights as Keras, h5py, safetensors, NumPy and Orbax write them: every key, every value bit for bit."""

import contextlib
import io
import json
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from keras import layers
from safetensors.numpy import save_file
from weight_files import arrays, legacy, read, run_folder, variables

from cnnjax.types import UserError
from cnnjax.weights import formats


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].shape, found[key].dtype, found[key].tobytes()) == (value.shape, value.dtype, value.tobytes())


@pytest.fixture(scope="module")
def model():
    """Model with all kinds of layers of a ConvNet, some of them in a model inside the model, and an optimizer."""
    backbone = [layers.Conv2D(3, 3, name="inner_conv"), layers.BatchNormalization(name="inner_bn")]
    inputs = x = keras.Input((8, 8, 3))
    for layer in (
        layers.Conv2D(4, 3, name="conv1"),
        layers.BatchNormalization(name="bn1"),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw"),
        layers.BatchNormalization(scale=False, name="bn_dw"),
        layers.SeparableConv2D(4, 3, padding="same", use_bias=False, name="sep"),
        layers.SeparableConv2D(5, 1, name="sep2"),
        keras.Sequential([keras.Input((6, 6, 5)), *backbone], name="backbone"),
        layers.Dropout(0.5),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2, use_bias=False, name="fc1"),
        layers.Dense(7, name="fc"),
    ):
        x = layer(x)
    model = keras.Model(inputs, x)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def weights_of(model):
    expected = {}
    for layer in model.layers:
        own = {f"{layer.name}/{w.name}": np.asarray(w.value) for w in layer.weights}
        expected |= weights_of(layer) if isinstance(layer, keras.Model) else own
    return expected


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5", "model.keras"])
def test_what_keras_saves(tmp_path, model, name):
    model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    names, values = read(tmp_path / name)
    assert names == "keras"
    assert len(values) == 24
    same(values, weights_of(model))


def without_names(file):
    """Removes the names of layers, as the first versions of Keras 3 did not write them."""
    file.visititems(lambda path, it: it.attrs.pop("name", None) and None)


def test_keras_files_that_do_not_name_layers_need_the_configuration(tmp_path, model):
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    bare = tmp_path / "bare.weights.h5"
    bare.write_bytes(entries["model.weights.h5"])
    with h5py.File(bare, "r+") as file:
        without_names(file)
    with pytest.raises(UserError, match=r"does not say which layer layers/\S+ is.*save the model as \.keras"):
        read(bare)
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, data in (entries | {"model.weights.h5": bare.read_bytes()}).items():
            archive.writestr(name, data)
    same(read(tmp_path / "old.keras")[1], weights_of(model))


def test_three_arrays_of_a_norm_are_told_apart_by_the_configuration(tmp_path):
    norms = [layers.BatchNormalization(center=False, name="g"), layers.BatchNormalization(scale=False, name="b")]
    model = keras.Sequential(
        [keras.Input((4,)), *norms, layers.BatchNormalization(center=False, scale=False, name="n")]
    )
    model.save(tmp_path / "m.keras")
    same(read(tmp_path / "m.keras")[1], weights_of(model))
    assert "g/gamma" in weights_of(model)


LEGACY = {
    "conv1/conv1/kernel:0": "conv1/kernel",
    "conv1/conv1/bias:0": "conv1/bias",
    "conv2/conv2_1/kernel:0": "conv2/kernel",  # a scope that TensorFlow numbered
    "bn/bn/gamma:0": "bn/gamma",
    "bn/bn/moving_variance:0": "bn/moving_variance",
    "dw/dw/depthwise_kernel:0": "dw/kernel",
    "sep/sep/depthwise_kernel:0": "sep/depthwise_kernel",
    "sep/sep/pointwise_kernel:0": "sep/pointwise_kernel",
    "backbone/inner/kernel:0": "inner/kernel",
    "block1_conv1/block1_conv1_W_1:0": "block1_conv1/kernel",  # Keras 1
    "block1_conv1/block1_conv1_b_1:0": "block1_conv1/bias",
    "bn0/bn0_running_std:0": "bn0/moving_variance",
}


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_names_of_older_keras(tmp_path, root, libver):
    data = arrays(*LEGACY)
    names, values = read(legacy(tmp_path / "w.h5", data, root, libver=libver))
    assert names == "keras"
    same(values, {LEGACY[name]: value for name, value in data.items()})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_in_hdf5(tmp_path, dtype):
    data = {"c/c/kernel:0": np.linspace(0, 1, 6).astype(dtype).reshape(2, 3), "c/c/bias:0": np.zeros(0, dtype)}
    values = read(legacy(tmp_path / "w.h5", data))[1]
    same(values, {"c/kernel": data["c/c/kernel:0"], "c/bias": data["c/c/bias:0"]})


def test_real_weights(shared):
    path = shared / "weights" / "mobilenet_7_5_224_tf.h5"
    names, values = read(path)
    with h5py.File(path) as file:
        stored = [name.decode() if isinstance(name, bytes) else name for name in file.attrs["layer_names"]]
        expected = {
            key: file[key.split("/")[0]][key][...] for name in stored for key in file[name].attrs["weight_names"]
        }
    assert (names, len(values)) == ("keras", 137)
    same(values, expected)


def test_safetensors(tmp_path):
    data = arrays("conv.weight", "bn.bias", "fc.weight") | {
        "half": np.ones(3, np.float16),
        "brain": np.arange(5).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.0, np.float64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(data, tmp_path / "w", {"format": "pt"})
    names, values = read(tmp_path / "w")
    assert names == "torch"
    same(values, data)


@pytest.mark.parametrize("save", [save_file, lambda data, path: np.savez(path, **data)], ids=["safetensors", "npz"])
def test_whose_names(tmp_path, save):
    """The counters of torch's BatchNorm are left out."""
    path = tmp_path / "w.npz"
    data = arrays("a.weight", "a.bias")
    save(data | {"bn.num_batches_tracked": np.array(3)}, path)
    assert read(path)[0] == "torch"
    same(read(path)[1], data)
    for names, keys in {"keras": ("a/kernel", "b/bias"), "cnnjax": ("params/a/kernel", "batch_stats/a/mean")}.items():
        save(arrays(*keys), path)
        assert read(path)[0] == names


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    data = arrays("params/a/kernel", "params/b/kernel", "batch_stats/a/mean") | {
        "params/fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "params/scalar": np.array(1.5, np.float16),
        "params/big": np.arange(4, dtype=">f4"),
        "params/empty": np.zeros((2, 0)),
    }
    save(tmp_path / "w.npz", **data)
    same(read(tmp_path / "w.npz")[1], data)


@pytest.mark.parametrize("ema", [False, True])
def test_a_run_its_checkpoints_and_one_of_them(tmp_path, ema):
    run = run_folder(tmp_path, ema=ema)
    for path, step in ((run, 20), (run / "checkpoints", 20), (run / "checkpoints" / "3", 3)):
        names, values = read(path)
        assert names == "cnnjax"
        same(values, variables(step)[1])


@pytest.mark.parametrize("checkpointer", [ocp.StandardCheckpointer, ocp.PyTreeCheckpointer])
def test_variables_that_orbax_saved(tmp_path, checkpointer):
    tree, flat = variables()
    with contextlib.closing(checkpointer()) as orbax:
        orbax.save(tmp_path / "w", tree)
    names, values = read(tmp_path / "w")
    assert names == "cnnjax"
    same(values, flat)


def test_shapes_are_known_before_anything_is_read(tmp_path):
    """A wrong file is refused at no cost: here the values are damaged, which is noticed only when they are read."""
    data = arrays("a.weight", "b.weight", "c.weight")
    buffer = io.BytesIO()
    np.savez(buffer, **data)
    content = buffer.getvalue()
    at = content.index(data["c.weight"].tobytes())
    (tmp_path / "w.npz").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with formats.opened(tmp_path / "w.npz") as opened:
        assert {key: tensor.shape for key, tensor in opened.tensors.items()} == {k: v.shape for k, v in data.items()}
        assert np.array_equal(opened.tensors["b.weight"].read(), data["b.weight"])
        with pytest.raises(UserError, match="damaged"):
            opened.tensors["c.weight"].read()


def test_a_keras_file_needs_a_configuration_of_layers_only_for_names(tmp_path, model):
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = json.dumps({"class_name": "Own", "config": {}}).encode()
    with zipfile.ZipFile(tmp_path / "own.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    same(read(tmp_path / "own.keras")[1], weights_of(model))
