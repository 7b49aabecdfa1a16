"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import csv
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that gets the name ``path`` when the block ends without an exception; else nothing changes.

    A reader, or a crash, finds the old file or the new one. Processes and threads that write the same path at once do
    not disturb each other: the last to end wins.

    Args:
      path: in a folder that exists.
      sync: wait until the bytes are on the disk, so that the file also survives a loss of power.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content``, all or nothing."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    r"""Writes ``content`` as UTF-8, all or nothing; lone surrogates, as in file names, become ``\udce9``."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, all or nothing."""
    write_text(path, json.dumps(content, indent=2))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table with its header as CSV, all or nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue())
