"""Readers of files of weights, one module per format; the format is recognized by the content of the file.

To add a format, add a module to this package with a ``FORMAT``; no other file changes. At most one format may
recognize a file, so their order does not matter.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from cnnjax.types import UserError
from cnnjax.weights.formats import elsewhere, mapped_zip
from cnnjax.weights.formats.content import Content, Format, Signature

_HEAD = 512  # bytes of a file by which formats are recognized


def known() -> list[Format]:
    """Formats of all modules of this package."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return [module.FORMAT for module in modules if hasattr(module, "FORMAT")]


def signature(path: Path) -> Signature:
    """Signature of a file, by which its format is recognized.

    Raises:
      UserError: the file cannot be read, or is a damaged zip archive.
    """
    if path.is_dir():
        return Signature(path, b"", frozenset())
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a file of weights, or a tag of weights.published()") from error
    entries = mapped_zip.directory(path) if head.startswith(mapped_zip.MAGIC) else []
    return Signature(path, head, frozenset(entry.filename for entry in entries))


def recognized(path: Path) -> Format:
    """Format of a file or a folder.

    Raises:
      UserError: no format recognizes it, or several do; for files of other programs it names a way to one.
    """
    found, formats = signature(path), known()
    fitting = [each for each in formats if each.recognizes(found)]
    # Any folder may be one of Orbax. Of files the content decides, before a name's ending does.
    if (path.is_dir() or not fitting) and (route := elsewhere.route(found)) is not None:
        raise UserError(f"{path} {route}")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(sorted(each.name for each in fitting))
        raise UserError(f"{path} may be {names}: save the weights anew, in one of these formats")
    expected = ", ".join(sorted(each.name for each in formats))
    what = f"holds {sorted(found.entries)[:3]}" if found.entries else f"begins with {found.head[:8]!r}"
    raise UserError(f"{path} {what}, which no file of weights does: expected {expected}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the weights in a file, or in a folder that Orbax wrote.

    Raises:
      UserError: there is no such file, its format is unknown, or it is damaged or empty.
    """
    with recognized(path).opened(path) as content:
        if not content.tensors:
            raise UserError(f"{path}: a {content.kind} without weights")
        yield content
