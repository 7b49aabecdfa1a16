"""Formats of files of weights: each file is recognized by one of them, by its content; new formats can be added."""

import shutil
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_by_hand import SAVED
from weight_files import arrays, legacy, read, run_folder

from cnnjax.types import UserError
from cnnjax.weights import formats
from cnnjax.weights.formats import darknet, hdf5, keras, npz, orbax, safetensors, torch


def written(folder):
    """Writes files of every format; returns name (without the usual suffix) → module of the format."""
    data = arrays("conv/kernel", "conv/bias")
    legacy(folder / "a", data)
    with zipfile.ZipFile(folder / "b", "w") as archive:
        archive.writestr("model.weights.h5", (folder / "a").read_bytes())
    with zipfile.ZipFile(folder / "c", "w") as archive:
        archive.writestr("model.weights.json", "{}")
    np.savez(folder / "d.npz", **data)
    save_file(data, folder / "e")
    for name, saved in SAVED.items():
        (folder / name).write_bytes(saved)
    (folder / "tar").write_bytes(bytes(257) + b"ustar" + bytes(600))
    run_folder(folder / "run", ema=False)
    modules = {"a": hdf5, "b": keras, "c": keras, "d.npz": npz, "e": safetensors, "run": orbax}
    return modules | dict.fromkeys((*SAVED, "tar"), torch)


def test_every_file_is_recognized_by_one_format(tmp_path):
    for name, module in written(tmp_path).items():
        found = formats.signature(tmp_path / name)
        assert [each.name for each in formats.known() if each.recognizes(found)] == [module.FORMAT.name], name
        assert formats.recognized(tmp_path / name) is module.FORMAT


def test_the_order_of_the_modules_does_not_matter(tmp_path, monkeypatch):
    files, known = written(tmp_path), formats.known()
    for order in (known[::-1], known[3:] + known[:3]):
        monkeypatch.setattr(formats, "known", lambda order=order: order)
        for name, module in files.items():
            assert formats.recognized(tmp_path / name) is module.FORMAT


def test_the_error_names_the_formats_of_all_modules(tmp_path):
    (tmp_path / "w").write_bytes(b"GIF89a")
    modules = (darknet, hdf5, keras, npz, orbax, safetensors, torch)
    expected = ", ".join(sorted(module.FORMAT.name for module in modules))
    with pytest.raises(UserError, match=rf"begins with b'GIF89a', which no file of weights does: expected {expected}$"):
        formats.recognized(tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("a/b.txt", "")
    with pytest.raises(UserError, match=r"holds \['a/b.txt'\], which no file of weights does"):
        formats.recognized(tmp_path / "w")
    with pytest.raises(UserError, match="No such file or directory: give a file of weights"):
        formats.recognized(tmp_path / "absent")


NEW = '''
"""Arrays as text: a line with the key, then the values."""

import contextlib

import numpy as np

from cnnjax.weights.formats.content import Format, Tensor, from_keys


@contextlib.contextmanager
def opened(path):
    _, key, values = path.read_text().splitlines()
    value = np.array(values.split(), np.float32)
    yield from_keys("text file", {key: Tensor(value.shape, value.dtype, lambda: value)})


FORMAT = Format("text", lambda signature: signature.head.startswith(b"WEIGHTS"), opened)
'''


@pytest.fixture
def new_format(tmp_path, monkeypatch):
    """Adds a file to the package of the formats."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "words.py").write_text(NEW)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    yield
    sys.modules.pop(f"{formats.__name__}.words", None)
    vars(formats).pop("words", None)


def test_a_new_format_is_one_new_file(tmp_path, new_format):
    (tmp_path / "w").write_text("WEIGHTS\nfc.weight\n1 2.5 -3\n")
    names, values = read(tmp_path / "w")
    assert (names, values["fc.weight"].tolist()) == ("torch", [1, 2.5, -3])
    (tmp_path / "w").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"expected \.npz, \.safetensors, .*, text, torch \.pth$"):
        read(tmp_path / "w")


def test_a_file_of_two_formats_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("model.weights.h5", b"")
        archive.writestr("m/data.pkl", b"")
    with pytest.raises(UserError, match=r"w may be Keras \.keras or torch \.pth: save the weights anew"):
        formats.recognized(tmp_path / "w")


def test_a_file_without_arrays_is_refused(tmp_path):
    with h5py.File(tmp_path / "w", "w"):
        pass
    with pytest.raises(UserError, match="w: a Keras HDF5 file without weights"):
        read(tmp_path / "w")
    save_file({}, tmp_path / "w")
    with pytest.raises(UserError, match="w: a safetensors file without weights"):
        read(tmp_path / "w")


def test_a_format_is_recognized_by_the_content_and_not_by_the_name(tmp_path):
    data = arrays("a.weight", "b.weight")
    save_file(data, tmp_path / "w.safetensors")
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "w.h5")
    assert read(tmp_path / "w.h5")[1].keys() == data.keys()


def test_loading_imports_no_models_and_orbax_only_for_its_folders():
    """A new process reads a file and lists its modules."""
    code = """
import sys, tempfile, numpy as np
from pathlib import Path
from cnnjax.weights import formats
path = Path(tempfile.mkdtemp(), "w.npz")
np.savez(path, a=np.ones(3))
with formats.opened(path) as content:
    assert list(content.tensors) == ["a"]
print(sorted(name for name in sys.modules if name.startswith(("cnnjax.models", "orbax.checkpoint"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
