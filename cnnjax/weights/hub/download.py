"""Downloads of published files into the cache: resumed where they broke off, verified, and renamed when complete.

During the download a file is called ``….part``; ``….part.json`` beside it describes the version of the published file
whose first bytes it has.
"""

import base64
import contextlib
import fcntl
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from cnnjax import atomic
from cnnjax.types import UserError
from cnnjax.weights.hub import checksum
from cnnjax.weights.hub.catalog import Published, published

TRIES = 5
WAIT = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes
_RETRIED = {408, 416, 425, 429, 500, 502, 503, 504}  # HTTP statuses with which a later request may succeed


def by_file_name(name: str) -> Published | None:
    """The entry whose file in the cache has this name, if there is one."""
    return next((entry for entry in published().values() if entry.file == name), None)


def cached(entry: Published, progress: bool = True) -> Path:
    """Path of the entry's file in the cache; it is downloaded if it is not there, and always verified.

    Two processes never download the same file at once: the second waits. The next call resumes a download that broke
    off with the connection or the process.

    Args:
      entry: of the catalog.
      progress: show a bar, if stderr is a terminal.

    Raises:
      UserError: the download failed (the message has the cause, and the path for a file from elsewhere), or the file is
        not the published one.
    """
    path = checksum.cache_folder() / entry.file
    if not os.path.isfile(path):
        with _locked(path):
            if not os.path.isfile(path):  # unless another process has just downloaded it
                _download(entry, path, progress)
    if (wrong := checksum.mismatch(path, entry)) is not None:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
        except OSError as error:
            raise UserError(f"{wrong}: remove it, then it is downloaded again") from error
        raise UserError(f"{wrong}: set aside as {aside.name}, the next call downloads it again")
    return path


def verify(path: Path, entry: Published) -> None:
    """Verifies the checksum of a file, once: a file that has not changed since is not read again.

    Raises:
      UserError: it is another file, or damaged.
    """
    if (wrong := checksum.mismatch(path, entry)) is not None:
        raise UserError(f"{wrong}: fetch it again from {entry.url}; if it is a file of your own, give it another name")


def _download(entry: Published, path: Path, progress: bool) -> None:
    """Downloads the file, in several requests if need be, and verifies it."""
    part = path.with_name(f"{path.name}.part")
    for i in range(TRIES):
        try:
            _fetch(entry.url, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            if i == TRIES - 1 or not _is_temporary(error):
                raise UserError(
                    f"{entry.tag}: cannot download {entry.url} ({_cause(error)}): "
                    f"try again, or fetch it elsewhere and put it at {path}"
                ) from error
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # no such range: begin again
                _about(part).unlink(missing_ok=True)
        time.sleep(WAIT * 2**i)
    expected = entry.digest or checksum.read_json(_about(part)).get("stated")
    with _disk_errors(path):
        found = checksum.digest(part, expected)
        _about(part).unlink(missing_ok=True)
        if expected and not found.startswith(expected):
            part.unlink()
            raise UserError(
                f"{entry.url} gave another file than published: expected {expected}, got {found}; removed: "
                f"try again, or fetch it elsewhere and put it at {path}"
            )
        part.replace(path)
        _sync(path.parent)
        checksum.remember(path, found)


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Requests the bytes that ``part`` lacks; it is complete when this returns.

    Raises:
      OSError, HTTPException: the network failed.
      UserError: the disk failed.
    """
    size, about = _begun(url, part)
    if size and size == about["length"]:
        return
    headers = {"User-Agent": "cnnjax"}
    if size:  # a server that now has another version sends all of that one
        headers |= {"Range": f"bytes={size}-", "If-Range": about["version"]}
    redirects = _Redirects()
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as response:
        if not size or response.status != 206:
            size, about = 0, _described(url, response.headers, redirects.stated)
        elif response.headers.get("Content-Range") != f"bytes {size}-{about['length'] - 1}/{about['length']}":
            _about(part).unlink()
            raise ConnectionResetError(f"the server sent other bytes than those from {size} of {about['length']}")
        _copy(response, part, size, about, progress)


def _copy(response: http.client.HTTPResponse, part: Path, size: int, about: dict[str, Any], progress: bool) -> None:
    """Appends the answer to the first ``size`` bytes of ``part``; ConnectionResetError if it ends too early."""
    length = about["length"]
    with _disk_errors(part):
        file = part.open("ab" if size else "wb")
        if not size:
            atomic.write_json(_about(part), about)
    bar = tqdm(
        total=length,
        initial=size,
        desc=part.stem,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None if progress else True,
    )
    with file, bar:
        _check_room(part, (length or 0) - size)
        while data := response.read1(CHUNK):  # returns the bytes so far, so that few are lost with the process
            with _disk_errors(part):
                file.write(data)
            size += len(data)
            bar.update(len(data))
        with _disk_errors(part):
            file.flush()
            os.fsync(file.fileno())
    if length is not None and size != length:
        raise ConnectionResetError(f"the connection broke after {size} of {length} bytes")


def _about(part: Path) -> Path:
    """The file that describes ``part``."""
    return part.with_name(f"{part.name}.json")


def _begun(url: str, part: Path) -> tuple[int, dict[str, Any]]:
    """Number of bytes of ``part`` that can be kept, and the description of the file whose first bytes they are."""
    about, size = checksum.read_json(_about(part)), part.stat().st_size if part.is_file() else 0
    usable = about.get("url") == url and isinstance(about.get("version"), str) and isinstance(about.get("length"), int)
    return (size, about) if usable and size <= about["length"] else (0, about)


def _described(url: str, headers: Message, stated: str | None) -> dict[str, Any]:
    """The description of the file that an answer begins to send: its URL, length, version and checksum."""
    length, tag = headers.get("Content-Length", ""), headers.get("ETag", "W/")
    is_weak = tag.startswith("W/")  # files of different bytes may have the same weak tag
    return {
        "url": url,
        "length": int(length) if length.isdecimal() else None,
        "version": headers.get("Last-Modified") if is_weak else tag,
        "stated": stated or _stated(headers),
    }


def _stated(headers: Message) -> str | None:
    """The checksum of the whole file, which Hugging Face states in its redirect, and Google in its answer."""
    if match := re.fullmatch('"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", "")):
        return f"sha256:{match[1]}"
    if match := re.search("md5=([A-Za-z0-9+/]{22}==)", ",".join(headers.get_all("X-Goog-Hash", []))):
        return f"md5:{base64.b64decode(match[1]).hex()}"
    return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the checksum that they state."""

    stated: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.stated = self.stated or _stated(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _is_temporary(error: Exception) -> bool:
    """True for a broken or slow connection and a busy server; False where the server cannot be reached at all."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _RETRIED
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, (TimeoutError, ConnectionResetError))
    return isinstance(error, (http.client.HTTPException, TimeoutError, ConnectionError))


def _cause(error: Exception) -> str:
    """One line that describes an error of the network."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    text = str(error.reason if isinstance(error, urllib.error.URLError) else error)
    return " ".join(text.split()) or type(error).__name__


# Disk


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process downloads this file. The system removes the lock when a process ends in any way."""
    lock = path.with_name(f".{path.name}.lock")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process downloads {path.name}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the disk into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent} ({error.strerror}): make room, or name another folder in $CNNJAX_CACHE"
        ) from error


def _check_room(part: Path, needed: int) -> None:
    """UserError unless the disk has room for ``needed`` more bytes."""
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise UserError(
            f"no space for {part.stem}: another {needed / 2**20:.1f} MiB are to come, {part.parent} has "
            f"{free / 2**20:.1f} free: make room, or name another folder in $CNNJAX_CACHE"
        )


def _sync(folder: Path) -> None:
    """Waits until the renames in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
