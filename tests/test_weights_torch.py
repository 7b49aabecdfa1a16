"""torch's files read without torch: two that it wrote, forms of a state dict, and damaged files.

tests/parity compares more of them with torch itself; tests/test_weights_pickle.py has the malicious ones.
"""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from torch_by_hand import (
    DIMS,
    EXPECTED,
    GOOD,
    SAVED,
    STEPS,
    X,
    archive,
    dictionary,
    frugal,
    legacy,
    load,
    named,
    pickled,
    refused,
    same,
    storage,
    tensor,
    text,
    tup,
    whole,
    zipped,
)

from cnnjax.types import UserError
from cnnjax.weights import formats
from cnnjax.weights.formats import mapped_zip
from cnnjax.weights.formats import pickle as pickle_format
from cnnjax.weights.formats import torch as torch_format


@pytest.mark.parametrize("kind", SAVED)
def test_what_torch_wrote(tmp_path, kind):
    assert same(load(tmp_path / "it.bin", SAVED[kind]), EXPECTED)
    assert formats.recognized(tmp_path / "it.bin") is torch_format.FORMAT


@pytest.mark.parametrize("make", [zipped, legacy])
@pytest.mark.parametrize(
    "saved",
    [
        dictionary(text("w"), tensor()),
        dictionary(text("w"), tensor(), text("bn.num_batches_tracked"), tensor((), (), 5)),
        dictionary(text("epoch"), whole(3), text("state_dict"), dictionary(text("w"), tensor())),
        dictionary(
            *(text("rate"), b"G?\xe0\0\0\0\0\0\0"),
            *(text("args"), b"](N\x88\x89" + text("x") + b"e"),
            *(text("model"), dictionary(text("w"), tensor())),
        ),
        # A parameter; the arguments of torch < 0.4; an OrderedDict of pairs and byte strings, as Python 2 wrote them.
        dictionary(text("w"), named("torch._utils._rebuild_parameter"), tup(tensor(), b"\x88", b"N"), b"R"),
        dictionary(
            text("w"),
            named("torch._utils._rebuild_tensor") + tup(storage(), whole(0), DIMS, STEPS) + b"R",
        ),
        named("collections.OrderedDict") + tup(b"](" + b"](U\x01w" + tensor() + b"e" + b"e") + b"R",
    ],
)
def test_forms_of_a_state_dict(tmp_path, make, saved):
    assert same(load(tmp_path / "it.pth", make(pickled(saved))), {"w": X})


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({"size": (3, 2), "stride": (1, 3)}, X.T),
        ({"size": (3,), "stride": (2,)}, X.ravel()[::2]),
        ({"size": (2, 1, 2), "stride": (3, 2**70, 1), "offset": 1}, X[:, None, 1:]),
        ({"size": (), "stride": (), "offset": 5}, X[1, 2]),
        ({"size": (0, 4), "stride": (4, 1)}, np.zeros((0, 4), np.float32)),
    ],
)
def test_strides_are_those_of_numpy(tmp_path, of, expected):
    assert same(load(tmp_path / "it.pth", zipped(pickled(dictionary(text("w"), tensor(**of))))), {"w": expected})


@pytest.mark.parametrize("name", pickle_format.STORAGES)
def test_types(tmp_path, name):
    dtype = pickle_format.STORAGES[name]
    values = np.arange(3).astype(dtype)
    saved = tensor((3,), (1,), of=storage(numel=3, kind=name.replace(" ", ".")))
    data = zipped(pickled(dictionary(text("w"), saved)), s0=values.tobytes())
    assert same(load(tmp_path / "it.pth", data), {"w": values})


def test_values_are_views_of_the_mapped_file_and_deflated_ones_are_read(tmp_path):
    path = tmp_path / "it.pth"
    assert same(load(path, zipped(GOOD, zipfile.ZIP_DEFLATED)), {"w": X})
    path.write_bytes(zipped(GOOD))
    with torch_format.opened(path) as content:
        array = content.tensors["w"].read()
        assert not array.flags.writeable
        assert not array.flags.owndata
        assert type(array) is np.ndarray
    np.testing.assert_array_equal(array, X)


NOT_FITTING = {
    "negative": {"offset": -1},
    "a negative size": {"size": (-2, 3)},
    "a negative stride": {"stride": (-3, 1)},
    "offset": {"offset": 1},
    "size": {"size": (3, 3)},
    "stride": {"stride": (4, 1)},
    "expanded": {"size": (2**30, 2**30), "stride": (0, 0)},
    "overlapping": {"size": (2, 3), "stride": (2, 1)},
    "nothing of all": {"size": (0, 2**30, 2**30, 2**30), "stride": (1, 1, 1, 1)},
    "no element": {"of": storage(numel=0), "size": (1,), "stride": (1,)},
}


@pytest.mark.parametrize("make", [zipped, legacy])
def test_tensors_that_do_not_fit_their_storage(tmp_path, make):
    for of in NOT_FITTING.values():
        refused(tmp_path / "it.pth", make(pickled(dictionary(text("w"), tensor(**of)))), "damaged")


def test_what_is_no_state_dict(tmp_path):
    for saved, says in (
        (tensor(), "holds a TorchTensor"),
        (b"N", "holds a NoneType"),
        (dictionary(text("epoch"), whole(3)), "'epoch', a int, expected tensors by name"),
        (dictionary(whole(3), tensor()), "'3', a TorchTensor, expected tensors by name"),
        (dictionary(text("state_dict"), dictionary(text("w"), b"]")), "'w', a list"),
    ):
        refused(tmp_path / "it.pth", zipped(pickled(saved)), says, "torch.save(model.state_dict()")


def overlapping():
    """Zip archive with an entry inside another."""
    inner = zipfile.ZipInfo("m/data/0")
    inner.file_size = inner.compress_size = X.nbytes
    inner.CRC = zlib.crc32(X)
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("m/data.pkl", GOOD)
            outer = zipfile.ZipInfo("m/data/1")
            inner.header_offset = file.tell() + 30 + len(outer.filename)
            zipped.writestr(outer, inner.FileHeader() + X.tobytes())
            zipped.filelist.append(inner)
        return file.getvalue()


def tarred():
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("sys_info"))
        return file.getvalue()


STORED, BZIPPED = archive({"m/data.pkl": GOOD}), archive({"m/data.pkl": GOOD}, zipfile.ZIP_BZIP2)
FILES = {
    "no data": (archive({"m/data.pkl": GOOD}), "storage '0' is not there, expected 24 bytes"),
    "less data": (zipped(GOOD, s0=bytes(20)), "storage '0' has 20 bytes, expected 24"),
    "more data": (zipped(GOOD, s0=bytes(28)), "storage '0' has 28 bytes, expected 24"),
    "no pickle": (archive({"m/data/0": X.tobytes()}), "0 data.pkl in it, expected 1"),
    "two pickles": (archive({"m/data.pkl": GOOD, "n/data.pkl": GOOD}), "2 data.pkl in it, expected 1"),
    "a name twice": (archive([("m/data.pkl", GOOD), ("m/data.pkl", GOOD)]), "one name twice"),
    "TorchScript": (archive({"m/data.pkl": GOOD, "m/code/m.py": b"", "m/constants.pkl": b""}), "TorchScript"),
    "big-endian": (archive({"m/data.pkl": GOOD, "m/byteorder": b"big", "m/data/0": X.tobytes()}), "little-endian"),
    "bzip2": (BZIPPED, "a method other than deflate"),
    "a directory of elsewhere": (STORED[:-6] + struct.pack("<I", 1 << 20) + STORED[-2:], "it has no header"),
    "encrypted": (STORED[:6] + b"\x01" + STORED[7:], "encrypted"),
    "entries that overlap": (overlapping(), "overlap"),
    "a tar": (tarred(), "tar archive, as torch wrote before 0.1.10"),
    "empty": (b"", "begins with b''"),
    "something else": (b"GIF89a" + bytes(600), "begins with b'GIF89a"),
    "big-endian, legacy": (legacy(info=pickle.dumps({"little_endian": False}, 2)), "big-endian"),
    "another protocol": (legacy().replace(b"M\xe9\x03", b"M\xe8\x03", 1), "damaged header"),
    "cut off": (legacy()[:-1], "up to byte"),
    "no info": (legacy(info=pickled(b"N")), "damaged header"),
    "another size": (legacy(numel=5), "storage '0' has 5 elements, expected 6"),
    "a negative size": (legacy(numel=-1), "storage '0' has -1 elements, expected 6"),
    "no storages": (legacy(keys=()), "lists other storages"),
    "a storage too many": (legacy(keys=("0", "1")), "lists other storages"),
    "a storage twice": (legacy(keys=("0", "0")), "lists other storages"),
    "no list": (legacy(keys=pickled(b"N")), "lists other storages"),
    "numbers as names": (legacy(keys=pickle.dumps([0], 2)), "lists other storages"),
    "more behind it": (legacy(tail=b"x"), "has 1 bytes after its last storage"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path, name):
    data, says = FILES[name]
    refused(tmp_path / "it.pth", data, says)


@pytest.mark.parametrize("kind", SAVED)
def test_truncated_anywhere(tmp_path, kind):
    data = SAVED[kind]
    for end in (*range(0, len(data), len(data) // 40), len(data) - 1):
        refused(tmp_path / "it.pth", data[:end])


@pytest.mark.parametrize("kind", SAVED)
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, kind):
    """The legacy format has no checksums: a flip may change names and shapes there, which a model notices."""
    data, rng = SAVED[kind], np.random.default_rng(0)
    bits = 8 * (len(data) if kind == "zip" else len(data) - sum(8 + size for size in (24, 6, 12, 8)))
    noticed = 0
    for bit in rng.choice(bits, 3000, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = load(tmp_path / "it.pth", bytes(flipped))
        except UserError:
            noticed += 1
            continue
        shapes = {key: value.shape for key, value in found.items()}
        assert same(found, EXPECTED) or (kind == "legacy" and shapes != {k: v.shape for k, v in EXPECTED.items()}), bit
    assert noticed > 1000


def test_a_flipped_bit_of_a_value_is_noticed_when_it_is_read(tmp_path):
    data = zipped(GOOD)
    at = data.index(X.tobytes())
    for bit in range(0, 8 * X.nbytes, 11):
        flipped = bytearray(data)
        flipped[at + bit // 8] ^= 1 << bit % 8
        refused(tmp_path / "it.pth", bytes(flipped), "'m/data/0' is damaged (its size or checksum differs)")


# Bytes of an entry's own header: the place, and the new bytes.
HEADERS = {
    "a method": (8, b"\x08", "differs from the directory"),
    "a checksum": (14, b"\0", "differs from the directory"),
    "a packed size": (18, b"\x01", "differs from the directory"),
    "a size": (22, b"\x01", "differs from the directory"),
    "a name": (30, b"n", "differs from the directory"),
    "a longer name": (26, b"\x0b", "differs from the directory"),
    "a place behind the end": (28, b"\xff\xff", "extends beyond the end of the file"),
    "no signature": (0, b"PK\x03\x05", "begins with"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_contradict_the_directory(tmp_path, name):
    at, changed, says = HEADERS[name]
    data = zipped(GOOD)
    assert data[at : at + len(changed)] != changed
    refused(tmp_path / "it.pth", data[:at] + changed + data[at + len(changed) :], says)


def test_a_pickle_has_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "it.pth"
    monkeypatch.setattr(torch_format, "PICKLE_LIMIT", 200)
    assert len(GOOD) > 200
    refused(path, zipped(GOOD), "its data.pkl has more than")
    refused(path, legacy(), "damaged pickle")


def test_a_directory_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_zip, "MAX_DIRECTORY", 100)
    refused(tmp_path / "it.pth", zipped(GOOD), "damaged zip archive (a directory of")


def test_bombs_take_no_memory(tmp_path):
    path, zeros = tmp_path / "it.pth", bytes(64 << 20)
    inflating = zipped(zeros, zipfile.ZIP_DEFLATED)
    lying = zipped(GOOD, zipfile.ZIP_DEFLATED, s0=zeros).replace(struct.pack("<I", len(zeros)), struct.pack("<I", 24))
    huge = pickled(dictionary(text("w"), tensor((2**31 - 1,), (1,), of=storage(numel=2**31 - 1))))
    with frugal(8, 10):
        refused(path, inflating, "would grow to 67108864")
        refused(path, lying, "checksum differs")
        refused(path, zipped(huge), "expected 8589934588 bytes")
        refused(path, legacy(huge), "expected 2147483647")
