"""Damaged and malicious files of weights: each gives one clear error or the values that were written, in little memory.

torch's files have their own tests. Formats notice different damage: zip archives (``.keras``, ``.npz``), our
safetensors and our checkpoints have checksums of everything; HDF5 and other safetensors have none of the values.
"""

import io
import json
import random
import shutil
import struct
import tracemalloc
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import save_file
from weight_files import arrays, legacy, read, run_folder, variables

from cnnjax import weights
from cnnjax.models import create
from cnnjax.types import UserError

LAYERS = ("conv1/kernel", "conv1/bias", "bn1/beta", "bn1/gamma", "fc/kernel", "fc/bias")


def refused(path, *says):
    """Checks that reading ends in a UserError of one line that names the file, and takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 700, message
    assert all(word in message for word in says), message


def keras_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.Flatten(),
            layers.Dense(5, name="fc"),
        ]
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Name → bytes of an undamaged file of every format."""
    folder = tmp_path_factory.mktemp("good")
    model = keras_model()
    model.save(folder / "keras.keras")
    model.save_weights(folder / "keras3.weights.h5")
    legacy(folder / "legacy.h5", arrays(*(f"{name.split('/')[0]}/{name}:0" for name in LAYERS)), "model_weights")
    data = arrays(*(f"params/{name}" for name in LAYERS))
    np.savez(folder / "stored.npz", **data)
    np.savez_compressed(folder / "deflated.npz", **data)
    save_file(data, folder / "foreign.safetensors")
    lenet = create("lenet5_modern")
    shapes = jax.eval_shape(lenet.init, jax.random.key(0), np.zeros((1, *lenet.image_shape), np.float32))
    weights.save(folder / "ours.safetensors", jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes), lenet)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NO_CHECKSUM = {"keras3.weights.h5", "legacy.h5", "foreign.safetensors"}
NAMES = sorted({"keras.keras", "stored.npz", "deflated.npz", "ours.safetensors"} | NO_CHECKSUM)


def outcome(path, expected):
    """Result of reading: "refused", "unlike" in names or shapes (which ``load`` compares with the model), or the
    number of elements that differ.
    """
    try:
        found = read(path)[1]
    except UserError as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else str(error)
    if {k: (v.shape, v.dtype) for k, v in found.items()} != {k: (v.shape, v.dtype) for k, v in expected.items()}:
        return "unlike"
    return sum(int((found[key].view(np.uint32) != value.view(np.uint32)).sum()) for key, value in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_off_is_refused(tmp_path, good, name):
    (path := tmp_path / name).write_bytes(good[name])
    expected = read(path)[1]
    size = len(good[name])
    for end in {1, 7, 8, 9, 100, 1000, size // 3, size // 2, size - 1000, size - 100, size - 8, size - 1}:
        path.write_bytes(good[name][:end])
        assert outcome(path, expected) == "refused", end


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_noticed_or_changes_one_value(tmp_path, good, name):
    (path := tmp_path / name).write_bytes(good[name])
    expected = read(path)[1]
    rng, size = random.Random(0), len(good[name])
    found = []
    for i in range(24):
        damaged = bytearray(good[name])
        at = (rng.randrange(size), rng.randrange(min(size, 900)), size - 1 - rng.randrange(min(size, 900)))[i % 3]
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        found.append(outcome(path, expected))
    assert "refused" in found
    assert set(found) <= {"refused", "unlike", 0} | ({1} if name in NO_CHECKSUM else set()), found


# HDF5 files that Keras would not write.
def hdf5(path, build):
    """Writes a good file of one layer, then changes it."""
    legacy(path, arrays("conv/conv/bias:0", "conv/conv/kernel:0"))
    with h5py.File(path, "r+") as file:
        build(file)
    return path


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("a/v", layout)


def never_written(file):
    file.create_dataset("a/never", (10**12,), "f4")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda f: f.update({"a/x": h5py.ExternalLink("other.h5", "x")}), "link to elsewhere"),
        (lambda f: f.update({"a/x": h5py.SoftLink("/conv/conv")}), "link to elsewhere"),
        (lambda f: f.update({"a": f["conv"]}), "has two names"),
        (lambda f: f["conv"].update({"loop": f["/"]}), "has two names"),
        (lambda f: f.update({"a/x": np.dtype("f4")}), "neither group nor array"),
        (virtual, "in another file"),
        (lambda f: f.create_dataset("a/x", (3,), "f4", external=[("other.raw", 0, 12)]), "in another file"),
        (lambda f: f.create_dataset("a/x", (10**6, 10**6), "f4", chunks=(1000, 1000)), "in pieces"),
        (lambda f: f.create_dataset("a/x", data=np.zeros(2**20), compression="gzip"), "in pieces"),
        (never_written, "of which 0 were written"),
        (lambda f: f.create_dataset("a/x", data=h5py.Empty("f4")), "no extent"),
        (lambda f: f.create_dataset("a/x", data=np.ones(3, ">f4")), "little-endian numbers"),
        (lambda f: f.create_dataset("a/x", data="text"), "little-endian numbers"),
        (lambda f: f.create_dataset("a/x", (1,), h5py.ref_dtype), "little-endian numbers"),
        (lambda f: f.create_dataset("a/x", data=np.ones(2, np.complex64)), "little-endian numbers"),
        (lambda f: f.create_dataset("alone", data=np.ones(3)), "belongs to no layer"),
        (lambda f: f.create_dataset("b/conv/kernel:0", data=np.ones(3)), "two arrays are conv/kernel"),
    ],
)
def test_what_keras_does_not_write_is_refused(tmp_path, build, says):
    refused(hdf5(tmp_path / "w.h5", build), says, "damaged HDF5 file")


def replaced(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def test_an_array_that_lies_elsewhere_is_noticed(tmp_path, good):
    """HDF5 has no checksum of addresses: here they point to another array, to structure, and beyond the end."""
    data, path = good["legacy.h5"], tmp_path / "w.h5"
    path.write_bytes(data)
    with h5py.File(path) as file:
        theirs = [file[f"model_weights/conv1/conv1/{name}:0"] for name in ("kernel", "bias")]
        (kernel, bias), header = ((it.id.get_offset() for it in theirs), h5py.h5o.get_info(theirs[0].id).addr)
    old = struct.pack("<Q", kernel)
    for new, says in (
        (bias, "two arrays"),
        (header, "where structure is"),
        (96, "structure"),
        (len(data) - 9, "invalid"),
    ):
        path.write_bytes(replaced(data, old, struct.pack("<Q", new)))
        refused(path, says)


def test_a_damaged_heap_does_not_hang_the_library(tmp_path, good):
    data, path = good["keras3.weights.h5"], tmp_path / "w.h5"
    heap = data.index(b"GCOL")
    for at, value in ((heap + 24, 1 << 10), (heap + 24, 1 << 60), (heap + 8, 0), (heap + 16, 0)):
        damaged = bytearray(data)
        damaged[at : at + 8] = struct.pack("<Q", value)
        path.write_bytes(damaged)
        refused(path)


# .keras
def keras_zip(path, good, compression=zipfile.ZIP_STORED, **changes):
    with zipfile.ZipFile(io.BytesIO(good["keras.keras"])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | changes.pop("entries", {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"model.weights.h5": None, "model.weights.json": b"{}"}, "max_shard_size"),
        ({"config.json": None}, "without config.json"),
        ({"config.json": b"{"}, "describes no model"),
        ({"config.json": b"[" * 100_000}, "describes no model"),
        ({"config.json": b"[1]"}, "describes no model"),
        ({"config.json": b'{"config": {"layers": [{"class_name": 3}]}}'}, "describes no model"),
        ({"config.json": b'{"config": {"layers": [{"class_name": "Dense", "config": []}]}}'}, "describes no model"),
        ({"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(1000)}, "damaged HDF5"),
        ({"model.weights.h5": bytes(1 << 24)}, "would grow"),
    ],
)
def test_keras_files_that_are_none(tmp_path, good, entries, says):
    compression = zipfile.ZIP_DEFLATED if says == "would grow" else zipfile.ZIP_STORED
    refused(keras_zip(tmp_path / "m.keras", good, compression, entries=entries), says)


# safetensors
def safetensors(header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def described(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        safetensors(b"{" * 50_000),
        safetensors({"a": described([2], [0, 8])}, bytes(7)),
        safetensors({"a": described([2], [0, 8])}, bytes(9)),
        safetensors({"a": described([3], [0, 8])}, bytes(8)),
        safetensors({"a": described([-2], [0, 8])}, bytes(8)),
        safetensors({"a": described([10**6, 10**6], [0, 8])}, bytes(8)),
        safetensors({"a": described([1 << 62, 1 << 62], [0, 8])}, bytes(8)),
        safetensors({"a": described([2], [8, 0])}, bytes(8)),
        safetensors({"a": described([2], [0, 8]), "b": described([2], [4, 12])}, bytes(12)),
        safetensors({"a": described([2], [0, 8]), "b": described([2], [12, 20])}, bytes(20)),
        safetensors({"a": described([2], [0, 8], "F33")}, bytes(8)),
        safetensors({"a": described([8], [0, 8], "F8_E4M3")}, bytes(8)),
        safetensors(b'{"a": %s, "a": %s}' % ((b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',) * 2), bytes(16)),
        safetensors({"__metadata__": {"format": "cnnjax"}, "params/a": described([2], [0, 8])}, bytes(8)),
        safetensors({}),
    ],
)
def test_headers_of_safetensors(tmp_path, data):
    (path := tmp_path / "w.safetensors").write_bytes(data)
    refused(path)


# npz
def npy(header, values=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -1)}", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False}", bytes(8)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", bytes(16)),
        npy("{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(12)),
        npy("__import__('os').system('true')"),
        npy("(" * 9000),
        npy(" " * 20_000),
        b"\x93NUMPY\x03\x00" + struct.pack("<I", 1 << 31) + b"{",
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_headers_of_npz(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", data)
    refused(tmp_path / "w.npz", "a.npy")


def test_pickled_arrays_are_not_unpickled(tmp_path):
    marker = tmp_path / "ran"
    np.savez(tmp_path / "w.npz", **{"params/a": np.array([Runs(marker)], object)})
    refused(tmp_path / "w.npz", "pickled objects")
    assert not marker.exists()


def test_a_bomb_and_a_name_twice_in_npz(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", **{"params/a": np.zeros(1 << 22)})
    refused(tmp_path / "bomb.npz", "would grow")
    np.savez(tmp_path / "twice.npz", **{"params/a": np.ones(3), "params/b": np.ones(3)})
    data = (tmp_path / "twice.npz").read_bytes().replace(b"params/b", b"params/a")
    (tmp_path / "twice.npz").write_bytes(data)
    refused(tmp_path / "twice.npz", "one name twice")


# Orbax
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax' event loop
def test_every_file_of_a_checkpoint_damaged(tmp_path):
    """Each file is emptied, halved, removed, and has a bit flipped."""
    step = run_folder(tmp_path / "good", ema=True) / "checkpoints" / "20"
    expected, found = variables(20)[1], []
    for file in sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file()):
        data = (step / file).read_bytes()
        for damaged in (b"", data[: len(data) // 2], None, flipped(data, 3), flipped(data, len(data) - 9)):
            copy = shutil.copytree(step, tmp_path / "damaged" / "20", dirs_exist_ok=True)
            (copy / file).unlink() if damaged is None else (copy / file).write_bytes(damaged)
            found.append(outcome(copy, expected))
            shutil.rmtree(copy)
    assert len(found) >= 60
    assert set(found) <= {"refused", 0}, found
    assert found.count("refused") >= 15


def flipped(data, at):
    at = max(0, min(at, len(data) - 1))
    return data[:at] + bytes([data[at] ^ 4] if data else []) + data[at + 1 :]


def test_folders_without_weights(tmp_path):
    refused(tmp_path, "without checkpoints")
    (tmp_path / "checkpoints" / "3" / "state").mkdir(parents=True)
    refused(tmp_path, "damaged checkpoint")
    (tmp_path / "checkpoints" / "3" / "meta").mkdir()
    (tmp_path / "checkpoints" / "3" / "meta" / "metadata").write_text('{"crc32": [1]}')
    refused(tmp_path, "damaged checkpoint")
