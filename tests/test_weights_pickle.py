"""Pickles: no code that a file names is run, and everything but plain containers is refused."""

import copyreg
import pickle
import struct
import sys

import pytest
from torch_by_hand import (
    DIMS,
    GOOD,
    STEPS,
    X,
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

from cnnjax.weights.formats import pickle as pickle_format

COMMAND = "touch ran"
CALL = tup(text(COMMAND)) + b"R"
EVIL = named("os.system") + CALL
ORDERED, REBUILD = named("collections.OrderedDict"), named("torch._utils._rebuild_tensor")
# Pickles whose command Python's own unpickler runs, as the test shows: they are dangerous.
DANGEROUS = {
    "os.system": EVIL,
    "posix.system": named("posix.system") + CALL,
    "protocol 0": b"cos\nsystem\n(S'touch ran'\ntR",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + CALL,
    "STACK_GLOBAL by the memo": text("system") + b"q\x000" + text("os") + b"q\x010h\x01h\x00\x93" + CALL,
    "INST": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "OBJ": b"(" + named("os.system") + text(COMMAND) + b"o",
    "NEWOBJ": named("cnnjax_test_danger.Danger") + tup(text(COMMAND)) + b"\x81",
    "NEWOBJ_EX": named("cnnjax_test_danger.Danger") + tup(text(COMMAND)) + b"}\x92",
    "BUILD": named("cnnjax_test_danger.State") + b")\x81" + text(COMMAND) + b"b",
    "EXT1": b"\x82\xf0" + CALL,
    "EXT2": b"\x83\xf0\x00" + CALL,
    "EXT4": b"\x84\xf0\x00\x00\x00" + CALL,
    "eval": named("builtins.eval") + tup(text("__import__('os').system('touch ran')")) + b"R",
    "exec": named("builtins.exec") + tup(text("import os; os.system('touch ran')")) + b"R",
    "Python 2's eval": named("__builtin__.eval") + tup(text("__import__('os').system('touch ran')")) + b"R",
    "a dotted name": text("collections")
    + text("_sys.modules.get")
    + b"\x93"
    + tup(text("os"))
    + b"R0"
    + named("os.system")
    + CALL,
    "subprocess": named("subprocess.call") + tup(b"](" + text("touch") + text("ran") + b"e") + b"R",
    "runpy": named("runpy._run_code") + tup(text("import os; os.system('touch ran')"), b"}") + b"R",
    "partial": named("functools.partial") + tup(named("os.system"), text(COMMAND)) + b"R)R",
    "in a list": b"](" + EVIL + b"e",
    "in a key": b"}(" + EVIL + b"Nu",
    "in the state": ORDERED + b")R" + b"}(" + text("_metadata") + named("os.system") + CALL + b"ub",
    "in the arguments": ORDERED + tup(b"](](N" + EVIL + b"ee") + b"R",
    "before the rest": EVIL + b"0" + dictionary(text("w"), whole(1)),
}
# Pickles that need torch to run, or run nothing but are not plain containers; with a text of the message.
REFUSED = {
    "torch.load": (named("torch.load") + CALL, "torch.load"),
    "torch.hub": (named("torch.hub.load") + CALL, "torch.hub.load"),
    "a module": (named("torch.nn.modules.linear.Linear") + b")\x81}b", "torch.nn.modules.linear.Linear"),
    "numpy": (named("numpy.load") + tup(text("x.npy")) + b"R", "numpy.load"),
    "__reduce__": (
        text("collections") + text("OrderedDict.__reduce__") + b"\x93)R",
        "collections.OrderedDict.__reduce__",
    ),
    "a global in an id": (
        tup(text("storage"), named("os.system"), text("0"), text("cpu"), whole(6)) + b"Q",
        "os.system",
    ),
    "another id": (tup(text("module"), text("x"), text("y"), text("z")) + b"Q", "module"),
    "no storage": (
        tup(text("storage"), ORDERED, text("0"), text("c"), whole(6)) + b"Q",
        "storage",
    ),
    "a view": (tup(text("storage"), named("torch.FloatStorage"), text("0"), text("c"), whole(6), b")") + b"Q", "tuple"),
    "an id as text": (b"P0\n", "PERSID"),
    "a called storage": (named("torch.FloatStorage") + tup(whole(1 << 30)) + b"R", "torch.FloatStorage"),
    "a called tensor": (tensor() + b")R", "TorchTensor"),
    "a called list": (b"])R", "list"),
    "a parameter of text": (
        named("torch._utils._rebuild_parameter") + tup(text("x"), b"\x88", b"N") + b"R",
        "_rebuild_parameter",
    ),
    "seven arguments": (named("torch._utils._rebuild_tensor_v2") + tup(b"NNNNNNN") + b"R", "_rebuild_tensor_v2"),
    "another rebuild": (named("torch._utils._rebuild_tensor_v3") + b")R", "_rebuild_tensor_v3"),
    "state of a list": (b"]}b", "adds to a list"),
    "state of a global": (ORDERED + b"}b", "Global"),
    "state that is a tuple": (b"})b", "state"),
    "items of a tensor": (tensor() + b"(NNu", "TorchTensor"),
    "an item of a global": (ORDERED + b"NNs", "Global"),
    "a tuple as a key": (b"}(N\x85Nu", "tuple"),
    "an OrderedDict of a text": (ORDERED + tup(text("ab")) + b"R", "OrderedDict"),
    "a pair of three": (ORDERED + tup(b"](](NNNee") + b"R", "OrderedDict of a list of a list"),
    "a pair of letters": (ORDERED + tup(b"](" + text("ab") + b"e") + b"R", "OrderedDict of a list of a str"),
    "a module, protocol 4": (text("torch.nn") + text("Linear") + b"\x93)\x81}b", "torch.nn.Linear"),
    "a bytearray": (b"\x96\x01" + bytes(7) + b"x", "BYTEARRAY8"),
    "an object of a class": (ORDERED + b")\x81", "OrderedDict"),
    "names in many lines": (text("os\n\x1b[2J") + text("system" * 99) + b"\x93", "os"),
}


# Values beside the weights, as NumPy, argparse, pathlib and torch pickle them: (opcodes, the type that is read past).
LATIN = named("_codecs.encode") + tup(text("\x00" * 8), text("latin1")) + b"R"
FLOAT64 = named("numpy.dtype") + tup(text("f8"), b"\x89", b"\x88") + b"R" + tup(whole(3), text("<"), b"NNN") + b"b"
ARRAY = named("numpy._core.multiarray._reconstruct") + tup(named("numpy.ndarray"), whole(0) + b"\x85", LATIN) + b"R"
VALUES = {
    "a number": named("numpy._core.multiarray.scalar") + tup(FLOAT64, LATIN) + b"R",
    "an array": ARRAY + tup(whole(1), whole(1) + b"\x85", FLOAT64, b"\x89", b"C\x08" + bytes(8)) + b"b",
    "arguments": named("argparse.Namespace") + b")\x81" + dictionary(text("lr"), whole(1)) + b"b",
    "a path": named("pathlib.PosixPath") + tup(text("/"), text("data")) + b"R",
    "a device": named("torch.device") + tup(text("cuda"), whole(0)) + b"R",
    "a defaultdict": named("collections.defaultdict") + tup(named("builtins.set")) + b"R" + text("x") + b"Ns",
    "a set": b"\x8f(" + whole(1) + b"\x90",
    "a set, protocol 2": named("__builtin__.set") + tup(b"](" + whole(1) + b"e") + b"R",
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Path of the file that a pickle's command makes; some pickles need the classes defined here."""

    def run(command):
        __import__("os").system(command)

    class Danger:
        def __new__(cls, command):
            run(command)

    class State:
        def __setstate__(self, command):
            run(command)

    module = type(sys)("cnnjax_test_danger")
    module.Danger, module.State = Danger, State
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", 240)
    yield tmp_path / "ran"
    copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, marker, name):
    data = pickled(DANGEROUS[name], protocol=2 if "Python 2" in name else 4)
    refused(tmp_path / "it.pth", zipped(data), "refused, only tensors and plain containers are read")
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists(), "the pickle was harmless, so that the test shows nothing"


def test_a_malicious_pickle_is_refused_in_every_place(tmp_path, marker):
    path = tmp_path / "it.pth"
    for data in (
        legacy(pickled(EVIL)),
        legacy(info=pickled(EVIL)),
        legacy(keys=pickled(EVIL)),
        legacy(GOOD, info=pickled(dictionary(text("little_endian"), b"\x88", text("x"), EVIL))),
        zipped(pickled(dictionary(text("state_dict"), dictionary(text("w"), tensor()), text("args"), EVIL))),
        zipped(pickled(dictionary(text("w"), tensor(of=tup(text("storage"), EVIL) + b"Q")))),
    ):
        refused(path, data, "asks for os.system: refused")
    refused(path, pickled(EVIL), "expected a file of torch.save")
    assert not marker.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_container_is_refused_by_name(tmp_path, name):
    item, says = REFUSED[name]
    refused(tmp_path / "it.pth", zipped(pickled(item)), says, "refused, only tensors")


@pytest.mark.parametrize("name", VALUES)
def test_values_beside_the_weights_are_read_past(tmp_path, name):
    state = dictionary(text("w"), tensor())
    saved = pickled(dictionary(text("best"), VALUES[name], text("net"), state), protocol=4)
    assert same(load(tmp_path / "it.pth", zipped(saved)), {"w": X})
    saved = pickled(dictionary(text("w"), tensor(), text("best"), VALUES[name]), protocol=4)
    assert same(load(tmp_path / "it.pth", zipped(saved)), {"w": X})
    refused(tmp_path / "it.pth", zipped(pickled(VALUES[name], protocol=4)), "expected a state dict")


BROKEN = {
    "no end": GOOD[:-1],
    "more on the stack": pickled(b"N", dictionary(text("w"), tensor())),
    "a mark left": pickled(b"(", dictionary(text("w"), tensor())),
    "nothing": pickled(),
    "an empty stack": pickled(b"}NNss"),
    "no mark": pickled(b"}Nu"),
    "a key without a value": pickled(b"}(Nu"),
    "no such memo": pickled(b"h\x05"),
    "no name": pickled(b"NN\x93"),
    "a key twice": pickled(dictionary(text("w"), tensor(), text("w"), tensor())),
    "two sizes of a storage": pickled(
        dictionary(text("w"), tensor(), text("v"), tensor((1,), (1,), of=storage(numel=5)))
    ),
    "a size of text": pickled(REBUILD, tup(storage(), whole(0), text("x"), text("x")), b"R"),
    "a size of booleans": pickled(REBUILD, tup(storage(), b"\x89", b"\x88\x85", b"\x88\x85"), b"R"),
    "no storage": pickled(REBUILD, tup(whole(0), whole(0), DIMS, STEPS), b"R"),
    "fewer strides": pickled(dictionary(text("w"), tensor((2, 3), (3,)))),
    "33 dimensions": pickled(dictionary(text("w"), tensor((1,) * 33, (1,) * 33))),
    "arguments that are a list": pickled(ORDERED, b"]R"),
    "no text": pickled(b"X\x02\0\0\0\xff\xfe"),
    "text of 4 GB": pickled(b"X\xff\xff\xff\xff"),
    "text of 8 EB": pickled(b"\x8d" + b"\xff" * 8),
}


@pytest.mark.parametrize("make", [zipped, legacy])
def test_broken_pickles(tmp_path, make):
    for data in BROKEN.values():
        refused(tmp_path / "it.pth", make(data), "damaged pickle", "fetch it again")


def test_pickles_that_explode_are_refused(tmp_path):
    path = tmp_path / "it.pth"
    pairs = b"".join(b"](" + whole(number) + b"Ne" for number in range(1000))
    many = ORDERED + b"q\x00](" + pairs + b"e\x85q\x01](" + b"h\x00h\x01R" * 600 + b"e"
    with frugal(300, 30):
        refused(path, zipped(pickled(b"N" * (pickle_format.MAX_OPCODES + 1))), "more than 500,000 opcodes")
        refused(path, zipped(pickled(many)), "more than 500,000 keys")


def test_deep_and_shared_containers_are_harmless(tmp_path):
    deep, good = b"(" * 50_000 + b"t" * 50_000, dictionary(text("w"), tensor())
    laughs = (
        b"N" + b"\x86".join(b"r" + struct.pack("<I", at) + b"j" + struct.pack("<I", at) for at in range(100)) + b"\x86"
    )
    path = tmp_path / "it.pth"
    with frugal(100, 20):
        for item in (deep, laughs, b"]q\x00h\x00a", b"Nr\xff\xff\xff\xff"):
            saved = pickled(dictionary(text("state_dict"), good, text("other"), item))
            assert same(load(path, zipped(saved)), {"w": X})
            refused(path, zipped(pickled(dictionary(text("w"), item))), "'w', a ")
        for item in (deep, laughs):
            refused(path, zipped(pickled(b"}", item, b"Ns")), "has a tuple as a key")
            refused(path, zipped(pickled(item, b"Q")), "refers to a tuple outside its pickle")
