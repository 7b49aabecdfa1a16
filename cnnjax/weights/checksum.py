"""Files held against published checksums, once for as long as they are not touched."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cnnjax.types import UserError
from cnnjax.weights.catalog import Published


def cache_folder() -> Path:
    """Where downloaded files lie."""
    return Path(os.environ.get("CNNJAX_CACHE") or "~/.cache/cnnjax/weights").expanduser().absolute()


def mismatch(path: Path, entry: Published) -> str | None:
    """What is wrong with the file; where nobody states a checksum, it is compared with what was downloaded."""
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
    """``sha256:…`` of the file, or by whatever ``expected`` begins with."""
    name = (expected or "sha256:").partition(":")[0]
    with path.open("rb") as file:
        return f"{name}:{hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()}"


def remember(path: Path, digest: str, state: list[int] | None = None) -> None:
    """Notes that the file has this checksum now, or when it was in this state."""
    with contextlib.suppress(OSError):  # a cache that is only readable is verified each time
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"path": str(path.resolve()), "digest": digest, "state": state or _state(path)})


def _state(path: Path) -> list[int]:
    """What changes whenever the file does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _note(path: Path) -> Path:
    return cache_folder() / ".verified" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
