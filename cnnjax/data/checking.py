"""Check of image files before a run: each is decoded once, in threads, and the verdicts are kept on the disk.

The verdict on a file holds as long as its path, size and time of change stay the same.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL
from tqdm import tqdm

from cnnjax import atomic
from cnnjax.data import preparation
from cnnjax.data.formats import images

THREADS = 8
FORM = 1  # of the files in the cache, and of what `preparation` can read


class Verdict(NamedTuple):
    """Result of reading an image file: its size or, where it cannot be read, only the ``error``."""

    width: int = 0  # in pixels, as viewers show it
    height: int = 0
    sideways: bool = False  # `decode` gives width and height exchanged unless it shall turn the image
    error: str = ""


State = tuple[int, int]  # size in bytes and time of change in ns
Entries = Mapping[str, tuple[State, Verdict]]  # by name of the file


def verdicts(paths: Sequence[Path], cache: Path | None) -> list[Verdict]:
    """Verdict on each file, with a progress bar where it takes long.

    Args:
      cache: folder that keeps the verdicts, in one file for each folder of images; None: they are not kept.
    """
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(path.parent, []).append(path)
    found: dict[Path, Verdict] = {}
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc="checking images", total=len(paths), unit="img", delay=2, disable=None) as bar,
    ):

        def examine(path: Path) -> Verdict:
            bar.update()
            return _examine(path)

        for folder, files in folders.items():
            file = None if cache is None else cache / f"{_key(folder)}.json"
            known, states = _read(file), {path: state for path in files if (state := _state(path))}
            new = [path for path in files if path.name not in known or known[path.name][0] != states.get(path)]
            bar.update(len(files) - len(new))
            examined = dict(zip(new, pool.map(examine, new), strict=True))
            found |= {path: examined[path] if path in examined else known[path.name][1] for path in files}
            if fresh := {path.name: (states[path], examined[path]) for path in new if path in states}:
                _write(file, {**known, **fresh})
    return [found[path] for path in paths]


def _examine(path: Path) -> Verdict:
    try:
        return Verdict(*images.examine(path))
    except images.CorruptImageError as error:
        return Verdict(error=str(error).removeprefix(f"{path}: "))


def _state(path: Path) -> State | None:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # no such file, or a name that none can have
        return None
    return stat.st_size, stat.st_mtime_ns


def _key(folder: Path) -> str:
    """Name for the folder and for what reads its files: another version of PIL may read more, or less."""
    reader = f"{FORM} {PIL.__version__} {preparation.formats()} {preparation.MOST_PIXELS}"
    return hashlib.sha256(os.fsencode(os.path.abspath(folder)) + reader.encode()).hexdigest()[:32]


def _read(file: Path | None) -> Entries:
    """Entries in a file of the cache; none where it is absent or damaged, so that all images are examined again."""
    if file is None:
        return {}
    try:
        content = json.loads(file.read_bytes())
        return {name: ((state[0], state[1]), Verdict(*verdict)) for name, state, verdict in content}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _write(file: Path | None, entries: Entries) -> None:
    if file is not None:
        with contextlib.suppress(OSError):  # with a cache that cannot be written, images are examined each time
            file.parent.mkdir(parents=True, exist_ok=True)
            content = [(name, state, verdict) for name, (state, verdict) in entries.items()]
            atomic.write_bytes(file, json.dumps(content, separators=(",", ":")).encode())
