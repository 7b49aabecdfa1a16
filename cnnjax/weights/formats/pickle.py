"""Pickles of plain containers and torch tensors, read without running any code that they name.

Python's own unpickler calls every function that a file names. Here all opcodes are inspected first; then they build
only containers and descriptions of tensors, and call nothing.
"""

import mmap
import pickletools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from cnnjax.types import UserError
from cnnjax.weights.formats.pickle_values import VALUES, Global, Inert, Storage, TorchTensor

MAX_OPCODES = 500_000  # a tensor takes about 40; a model has some hundreds of tensors
MAX_DIMS = 32
_STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}
STORAGES: Mapping[str, np.dtype] = {name: np.dtype(code) for name, code in _STORAGES.items()}
_ORDERED_DICT, _PARAMETER = "collections OrderedDict", "torch._utils _rebuild_parameter"
# Function → number of its arguments; torch before 0.4 wrote the first.
_TENSOR = {"torch._utils _rebuild_tensor": 4, "torch._utils _rebuild_tensor_v2": 6}
_UNKNOWN = "any opcode that is not known"
GLOBALS = frozenset({*STORAGES, *_TENSOR, _ORDERED_DICT, _PARAMETER, *VALUES})
_KEYS = (str, int, float, bool, type(None))  # cheap to hash: nested tuples can take forever


def load(file: IO[bytes] | mmap.mmap, path: Path) -> tuple[Any, Mapping[str, Storage]]:
    """Reads the next pickle of ``file``: its object, and all storages that it mentions, by key.

    Dicts and OrderedDicts become dicts; tensors and parameters become TorchTensor, not yet compared with the data of
    their storages; values of the few other types that training loops save become Inert. The position of ``file`` is
    then the end of the pickle.

    Args:
      file: at the beginning of a pickle.
      path: for messages.

    Raises:
      UserError: the pickle asks for anything else, or is damaged.
    """
    return _Machine(path).run(_scanned(file, path))


def _scanned(file: IO[bytes] | mmap.mmap, path: Path) -> list[tuple[str, Any]]:
    """The opcodes of a pickle with their arguments, up to the first that is not known."""
    opcodes: list[tuple[str, Any]] = []
    try:
        for opcode, arg, at in pickletools.genops(file):  # type: ignore[arg-type]  # an mmap reads like a file
            if opcode.name in ("GLOBAL", "INST"):
                _known(path, arg)
            if opcode.name not in _ACTIONS:
                # The machine refuses it, but a STACK_GLOBAL before it first: the message then has the name asked for.
                return [*opcodes, (_UNKNOWN, f"uses the opcode {opcode.name} at byte {at}")]
            if len(opcodes) == MAX_OPCODES:
                raise _refused(path, f"has more than {MAX_OPCODES:,} opcodes")
            opcodes.append((opcode.name, arg))
    # The exceptions that pickletools raises for a pickle that breaks off, or lacks a text where one should be.
    except (ValueError, OverflowError) as error:
        raise _damaged(path, error) from error
    return opcodes


def _known(path: Path, name: Any) -> Global:
    if name not in GLOBALS:
        raise _refused(path, f"asks for {_shown(name)}")
    return Global(name)


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:80].replace(" ", "."))


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}: refused, only tensors and plain containers are read; save model.state_dict() with torch.save"
    )


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} holds a damaged pickle ({str(why)[:120]}): fetch it again")


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class _Machine:
    """The stack and the memo that the opcodes work on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.filled = 0

    def run(self, opcodes: Iterable[tuple[str, Any]]) -> tuple[Any, Mapping[str, Storage]]:
        try:
            for name, arg in opcodes:
                _ACTIONS[name](self, arg)
        except (IndexError, KeyError) as error:  # the stack is empty, the memo lacks it
            raise _damaged(self.path, f"{name} finds nothing") from error
        if self.outer or len(self.stack) != 1:
            raise _damaged(self.path, "it ends too early")
        return self.stack.pop(), self.storages

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_marked(self) -> list[Any]:
        """Takes all values above the last mark from the stack, and the mark."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def pop(self, count: int) -> tuple[Any, ...]:
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def container(self, kind: type) -> Any:
        """The container on top of the stack, which stays there; UserError if it is of another kind."""
        if type(self.stack[-1]) is not kind:
            raise _refused(self.path, f"adds to a {type(self.stack[-1]).__name__} as if to a {kind.__name__}")
        return self.stack[-1]

    def refuse(self, what: str) -> None:
        raise _refused(self.path, what)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, values: Iterable[Any]) -> None:
        if type(self.stack[-1]) is not Inert:
            self.container(list).extend(values)

    def update(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is Inert:
            return
        target = self.container(dict)
        if len(values) % 2:
            raise _damaged(self.path, "a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.fill(target, key, value)

    def fill(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        self.filled += 1
        if self.filled > MAX_OPCODES:  # a few opcodes can turn one list into many dicts
            raise _refused(self.path, f"has more than {MAX_OPCODES:,} keys")
        if type(key) not in _KEYS:
            raise _refused(self.path, f"has a {type(key).__name__} as a key")
        if key in target:
            raise _damaged(self.path, f"the key {str(key)[:80]!r} occurs twice")
        target[key] = value

    def stack_global(self, _: Any) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise _damaged(self.path, "a global without a name")
        self.push(_known(self.path, f"{module} {name}"))

    def storage(self, _: Any) -> None:
        match self.stack.pop():
            # The legacy format adds None, or a view, which torch has not written since 0.4.
            case ("storage", Global(name), str(key), str(), numel, *view) if view in ([], [None]):
                pass
            case other:
                raise _refused(self.path, f"refers to a {_kind(other)} outside its pickle")
        if name not in STORAGES or not _are_counts(numel):
            raise _refused(self.path, f"refers to data that is no storage ({_shown(name)})")
        found = Storage(STORAGES[name], key, numel)
        if self.storages.setdefault(key, found) != found:
            raise _damaged(self.path, f"storage {key[:80]!r} has two sizes or types")
        self.push(found)

    def reduce(self, _: Any) -> None:
        function, args = self.pop(2)
        name = function.name if type(function) is Global else f"a {type(function).__name__}"
        if type(args) is not tuple:
            raise _damaged(self.path, f"{name} is called without arguments")
        if type(function) is Global and name in VALUES:
            self.push(Inert(name))
        elif name == _ORDERED_DICT:
            self.push(self.ordered_dict(args))
        elif name in _TENSOR and len(args) == _TENSOR[name]:
            self.push(self.tensor(*args[:4]))
        elif name == _PARAMETER and len(args) == 3 and type(args[0]) is TorchTensor:
            self.push(args[0])
        else:
            raise _refused(self.path, f"calls {_shown(name)} with {len(args)} arguments")

    def ordered_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """An OrderedDict, which later opcodes fill; Python 2 gave its pairs as the argument."""
        pairs = args[0] if args else []
        if len(args) > 1 or type(pairs) is not list:
            raise _refused(self.path, f"makes an OrderedDict of a {_kind(pairs)}")
        result: dict[Any, Any] = {}
        for pair in pairs:
            if type(pair) is not list or len(pair) != 2:
                raise _refused(self.path, f"makes an OrderedDict of a list of a {_kind(pair)}")
            self.fill(result, *pair)
        return result

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> TorchTensor:
        plain = type(storage) is Storage and type(size) is tuple and type(stride) is tuple
        if not plain or len(size) != len(stride) or len(size) > MAX_DIMS or not _are_counts(offset, *size, *stride):
            raise _damaged(self.path, "a tensor that is not described by a storage and whole numbers")
        return TorchTensor(storage, offset, size, stride)

    def new(self, _: Any) -> None:
        """Stands for an object of a class that is one of the other types; refuses any other class."""
        kind, _ = self.pop(2)
        if type(kind) is not Global or kind.name not in VALUES:
            made = _shown(kind.name) if type(kind) is Global else f"a {_kind(kind)}"
            raise _refused(self.path, f"makes an object of {made}")
        self.push(Inert(kind.name))

    def build(self, _: Any) -> None:
        """Drops the attributes of an Inert, and of a state dict: ``_metadata``, the versions of its layers."""
        state = self.stack.pop()
        if type(self.stack[-1]) is Inert:
            return
        if type(state) is not dict:
            raise _refused(self.path, "sets a state that is not a dict")
        self.container(dict)


def _kind(value: Any) -> str:
    """The type of a value for messages, and its first item if that is a text."""
    first = value[0] if isinstance(value, tuple) and value else None
    return type(value).__name__ + (f" of {_shown(first)!r}" if isinstance(first, str) else "")


def _nothing(machine: _Machine, arg: Any) -> None:
    pass


_Action = Callable[[_Machine, Any], None]
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING")  # Python 2 wrote the last two
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys((*_NUMBERS, *_TEXTS, *_BYTES), _Machine.push),
    _UNKNOWN: _Machine.refuse,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_marked()),
    "EMPTY_SET": lambda machine, _: machine.push(Inert("builtins set")),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.update(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_marked()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, name: machine.push(_known(machine.path, name)),
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
}
