"""Pickles of plain containers and torch tensors, read without running anything that they ask for.

Python's own unpickler calls what a file names. Here all opcodes are looked at first; then containers are built from
them, and descriptions of tensors, by code that calls nothing.
"""

import mmap
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from cnnjax.types import UserError

MAX_OPCODES = 500_000  # about 40 for each tensor; a model has some hundreds of them
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
_TENSOR = {"torch._utils _rebuild_tensor": 4, "torch._utils _rebuild_tensor_v2": 6}  # arguments; the first: torch < 0.4
_UNKNOWN = "any opcode that is not known"
GLOBALS = frozenset({*STORAGES, *_TENSOR, _ORDERED_DICT, _PARAMETER})
_KEYS = (str, int, float, bool, type(None))  # whose hash costs nothing: that of nested tuples can take for ever


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``numel`` values that the file holds under ``key``."""

    dtype: np.dtype
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A tensor: elements of a storage, ``offset`` and ``stride`` counted in elements, as the file states them."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle asks for by name, which is never looked up."""

    name: str  # "module name"


def load(file: IO[bytes] | mmap.mmap, path: Path) -> tuple[Any, Mapping[str, Storage]]:
    """The next pickle of ``file``, which is left behind its end; and all storages that it mentions, by key.

    Dicts and OrderedDicts become dicts, tensors and parameters TorchTensor, none of which was held
    against the data of its storage yet.

    Args:
      path: for the messages.

    Raises:
      UserError: the file asks for anything else, or is damaged.
    """
    return _Machine(path).run(_scanned(file, path))


def _scanned(file: IO[bytes] | mmap.mmap, path: Path) -> list[tuple[str, Any]]:
    opcodes: list[tuple[str, Any]] = []
    try:
        for opcode, arg, at in pickletools.genops(file):  # type: ignore[arg-type]  # an mmap reads like a file
            if opcode.name in ("GLOBAL", "INST"):
                _known(path, arg)
            if opcode.name not in _ACTIONS:
                # Left to the machine, which knows the name that a STACK_GLOBAL before it asks for.
                return [*opcodes, (_UNKNOWN, f"uses the opcode {opcode.name} at byte {at}")]
            if len(opcodes) == MAX_OPCODES:
                raise _refused(path, f"has more than {MAX_OPCODES:,} opcodes")
            opcodes.append((opcode.name, arg))
    # What pickletools raises for a pickle that breaks off, or holds no text where it should.
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


def _natural(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class _Machine:
    """The stack that the opcodes work on."""

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

    def marked(self) -> list[Any]:
        """All down to the mark, which goes too."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def taken(self, count: int) -> tuple[Any, ...]:
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def into(self, kind: type) -> Any:
        """What is on top, to be added to."""
        if type(self.stack[-1]) is not kind:
            raise _refused(self.path, f"adds to a {type(self.stack[-1]).__name__} as to a {kind.__name__}")
        return self.stack[-1]

    def refuse(self, what: str) -> None:
        raise _refused(self.path, what)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, values: Iterable[Any]) -> None:
        self.into(list).extend(values)

    def update(self, values: list[Any]) -> None:
        target = self.into(dict)
        if len(values) % 2:
            raise _damaged(self.path, "a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.fill(target, key, value)

    def fill(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        self.filled += 1
        if self.filled > MAX_OPCODES:  # a list in the memo can be made into many dicts
            raise _refused(self.path, f"has more than {MAX_OPCODES:,} keys")
        if type(key) not in _KEYS:
            raise _refused(self.path, f"has a {type(key).__name__} as a key")
        if key in target:
            raise _damaged(self.path, f"the key {str(key)[:80]!r} is there twice")
        target[key] = value

    def stack_global(self, _: Any) -> None:
        module, name = self.taken(2)
        if type(module) is not str or type(name) is not str:
            raise _damaged(self.path, "a global without a name")
        self.push(_known(self.path, f"{module} {name}"))

    def storage(self, _: Any) -> None:
        match self.stack.pop():
            # The legacy format adds None, or a view, which torch 0.4 and later do not write.
            case ("storage", Global(name), str(key), str(), numel, *view) if view in ([], [None]):
                pass
            case other:
                raise _refused(self.path, f"refers to a {_kind(other)} outside its pickle")
        if name not in STORAGES or not _natural(numel):
            raise _refused(self.path, f"refers to data that are no storage ({_shown(name)})")
        found = Storage(STORAGES[name], key, numel)
        if self.storages.setdefault(key, found) != found:
            raise _damaged(self.path, f"storage {key[:80]!r} has two sizes or types")
        self.push(found)

    def reduce(self, _: Any) -> None:
        function, args = self.taken(2)
        name = function.name if type(function) is Global else f"a {type(function).__name__}"
        if type(args) is not tuple:
            raise _damaged(self.path, f"{name} is called without arguments")
        if name == _ORDERED_DICT:
            self.push(self.ordered_dict(args))
        elif name in _TENSOR and len(args) == _TENSOR[name]:
            self.push(self.tensor(*args[:4]))
        elif name == _PARAMETER and len(args) == 3 and type(args[0]) is TorchTensor:
            self.push(args[0])
        else:
            raise _refused(self.path, f"calls {_shown(name)} with {len(args)} arguments")

    def ordered_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """Empty, to be filled; Python 2 gave its pairs here."""
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
        if not plain or len(size) != len(stride) or len(size) > MAX_DIMS or not _natural(offset, *size, *stride):
            raise _damaged(self.path, "a tensor that is not described by a storage and whole numbers")
        return TorchTensor(storage, offset, size, stride)

    def build(self, _: Any) -> None:
        """A state dict's ``_metadata`` (versions of layers) is an attribute of its OrderedDict: dropped."""
        if type(self.stack.pop()) is not dict:
            raise _refused(self.path, "sets a state that is not a dict")
        self.into(dict)


def _kind(value: Any) -> str:
    """Its type, and the first word if it has one."""
    first = value[0] if isinstance(value, tuple) and value else None
    return type(value).__name__ + (f" of {_shown(first)!r}" if isinstance(first, str) else "")


def _nothing(machine: _Machine, arg: Any) -> None:
    pass


_Action = Callable[[_Machine, Any], None]
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING")  # the last two: Python 2
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys((*_NUMBERS, *_TEXTS), _Machine.push),
    _UNKNOWN: _Machine.refuse,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(machine.taken(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.taken(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.taken(3)),
    "APPEND": lambda machine, _: machine.extend(machine.taken(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.update(list(machine.taken(2))),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, name: machine.push(_known(machine.path, name)),
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
