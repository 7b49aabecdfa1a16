"""Values in a pickle that are not plain: tensors, and what training loops save beside them, which is read past."""

from dataclasses import dataclass

import numpy as np

_NUMPY = ("scalar", "_reconstruct")
_SETS = ("set", "frozenset", "bytearray")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_FABRIC = ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data")

# Types, never looked up, for whose values an Inert stands.
VALUES = frozenset(  # "module name", as pickles name them
    {
        *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in _NUMPY),
        *("numpy dtype", "numpy ndarray", "_codecs encode"),
        *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in _SETS),
        *("collections defaultdict", "collections Counter", "collections deque", "argparse Namespace"),
        *(f"{module} {name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *("datetime datetime", "datetime date", "datetime timedelta"),
        *("torch Size", "torch device", "torch float32", "torch float16", "torch bfloat16"),
        *(f"{module} AttributeDict" for module in ("pytorch_lightning.utilities.parsing", *_FABRIC)),
    }
)


@dataclass(frozen=True, slots=True)
class Storage:
    """Storage of ``numel`` values, one after the other, which the file holds under ``key``."""

    dtype: np.dtype
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """Description of a tensor in a file: elements of a storage; ``offset`` and ``stride`` are counted in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that a pickle names; it is never looked up."""

    name: str  # "module name"


@dataclass(frozen=True, slots=True)
class Inert:
    """A value of one of ``VALUES``, such as a NumPy number: only its type is kept."""

    name: str  # "module name"
