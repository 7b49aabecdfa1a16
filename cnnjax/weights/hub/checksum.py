"""Verification of files by published checksums; a file that has not changed since is not read again.

A note per verified file, with its checksum and state, is in ``.verified`` in the cache.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cnnjax import atomic
from cnnjax.types import UserError
from cnnjax.weights.hub.catalog import Published


def cache_folder() -> Path:
    """The folder of downloaded files: ``$CNNJAX_CACHE``, else ``~/.cache/cnnjax/weights``."""
    return Path(os.environ.get("CNNJAX_CACHE") or "~/.cache/cnnjax/weights").expanduser().absolute()


def mismatch(path: Path, entry: Published) -> str | None:
    """Message if the checksum is not the entry's or, where that has none, not that of the download; else None."""
    note = read_json(_note(path))
    expected = entry.digest or note.get("digest")
    if expected is None:
        return None
    try:
        state = _state(path)
        if note.get("state") == state and str(note.get("digest")).startswith(expected):
            return None
        found = digest(path, expected)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    if not found.startswith(expected):
        return f"{path} is damaged or another file: expected {expected}, as {entry.tag} has, got {found}"
    remember(path, found, state)
    return None


def digest(path: Path, expected: str | None) -> str:
    """The checksum of the file, ``sha256:…``, or by the algorithm that ``expected`` begins with."""
    name = (expected or "sha256:").partition(":")[0]
    with path.open("rb") as file:
        return f"{name}:{hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()}"


def remember(path: Path, digest: str, state: list[int] | None = None) -> None:
    """Notes that the file has this checksum in this state (default: its present one)."""
    with contextlib.suppress(OSError):  # a file in a read-only cache is verified each time
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(note, {"path": str(path.resolve()), "digest": digest, "state": state or _state(path)})


def _state(path: Path) -> list[int]:
    """Figures of the file that change whenever it changes."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _note(path: Path) -> Path:
    return cache_folder() / ".verified" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
