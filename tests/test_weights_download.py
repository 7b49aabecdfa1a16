"""Downloads from a server in this process, which breaks off, sends wrong answers, and counts requests and bytes."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cnnjax.types import UserError
from cnnjax.weights.hub import checksum, download
from cnnjax.weights.hub.catalog import Published

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Server of ``content`` at every path but /redirect, which redirects to it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.ranges, self.length = CONTENT, '"1"', True, True
        self.answers = []  # for the next requests: an HTTP status, or the number of bytes after which to break off
        self.headers = {}
        self.redirect_headers = {}
        self.pause = 0.0  # seconds after each 64 KiB
        self.shift = 0  # bytes that are added to the range in the answer
        self.asked, self.sent = [], 0

    def url(self, path="/weights.bin"):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        if self.path == "/redirect":
            self.begin(302, {"Location": server.url(), "Content-Length": "0", **server.redirect_headers})
            return
        server.asked.append(self.headers.get("Range"))
        answer = server.answers.pop(0) if server.answers else len(server.content)
        if answer < 600 and answer in self.responses:
            self.begin(answer, {"Content-Length": "0"})
            return
        whole, start = server.content, 0
        if server.ranges and self.headers.get("Range") and self.headers.get("If-Range") == server.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": server.tag, **server.headers}
        if server.length:
            headers["Content-Length"] = str(len(whole) - start)
        if start:
            headers["Content-Range"] = f"bytes {start + server.shift}-{len(whole) - 1}/{len(whole)}"
        self.begin(206 if start else 200, headers)
        for at in range(start, min(len(whole), start + answer), 1 << 16):
            data = whole[at : min(at + (1 << 16), start + answer)]
            try:
                self.wfile.write(data)
            except OSError:
                return
            server.sent += len(data)
            time.sleep(server.pause)

    def begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "WAIT", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entry(server, path="/weights.bin", **changes):
    given = {"sha256": SHA256, "url": server.url(path), **changes}
    return Published(
        tag="resnet18.test",
        model="resnet18",
        file="weights.bin",
        source="",
        image_size=224,
        resize=256,
        resample="bilinear",
        preprocess="tf",
        top1=0.0,
        top5=0.0,
        **given,
    )


def names(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize(
    "digest", [{}, {"sha256": SHA256[:8]}, {"sha256": None, "md5": hashlib.md5(CONTENT).hexdigest()}]
)
def test_whole(server, tmp_path, digest, capfd):
    path = download.cached(entry(server, **digest))
    assert path == tmp_path / "cache" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.bin"]
    assert download.cached(entry(server, **digest)) == path
    assert server.asked == [None]
    assert capfd.readouterr() == ("", "")  # no bar in a log file


def test_resumes_what_broke_off(server):
    server.answers = [1_000_000, 500_001]
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500001-"]
    assert server.sent == len(CONTENT)  # no byte is sent twice


def test_resumes_in_a_later_call(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.answers = [1_000_000]
    with pytest.raises(UserError, match="the connection broke after 1000000 of 3000000 bytes"):
        download.cached(entry(server))
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_part_that_is_whole_already(server, tmp_path, monkeypatch):
    """The process stopped between the last byte and the rename."""
    monkeypatch.setattr(checksum, "digest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        download.cached(entry(server))
    assert names(tmp_path) == ["weights.bin.part", "weights.bin.part.json"]
    monkeypatch.undo()
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize("change", [{"ranges": False}, {"tag": 'W/"1"'}, {"length": False}])
def test_server_that_cannot_resume(server, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.answers = [1_000_000] if server.length else []
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) + (1_000_000 if server.length else 0)


def test_file_that_changes_while_it_is_fetched(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.answers = [1_000_000]
    with pytest.raises(UserError):
        download.cached(entry(server))
    server.content, server.tag = CONTENT[::-1], '"2"'
    path = download.cached(entry(server, sha256=hashlib.sha256(CONTENT[::-1]).hexdigest()))
    assert path.read_bytes() == CONTENT[::-1]


def test_part_of_another_file(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.answers = [1_000_000]
    with pytest.raises(UserError):
        download.cached(entry(server, "/other.bin"))
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.asked == [None, None]


@pytest.mark.parametrize("odd", ["shift", 416])
def test_server_that_answers_oddly(server, odd):
    """The server sends other bytes than asked for, or answers that there are none: the download begins again."""
    server.answers = [1_000_000] if odd == "shift" else [1_000_000, 416]
    server.shift = int(odd == "shift")
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", None]


def test_wrong_file(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError, match=f"expected sha256:{SHA256}, got sha256:{found}; removed") as error:
        download.cached(entry(server))
    assert server.url() in str(error.value)
    assert names(tmp_path) == []
    server.content = CONTENT
    assert download.cached(entry(server)).read_bytes() == CONTENT


def test_busy_server(server):
    server.answers = [503, 429]
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_no_such_file(server, tmp_path):
    server.answers = [404, 404]
    with pytest.raises(UserError, match="HTTP 404 Not Found") as error:
        download.cached(entry(server))
    assert server.url() in str(error.value)
    assert str(tmp_path / "cache" / "weights.bin") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.asked) == 1


def test_file_put_there_by_hand_when_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 1.0)  # a wait would show
    server.shutdown()
    server.server_close()
    begin = time.monotonic()
    with pytest.raises(UserError, match="Connection refused") as error:
        download.cached(entry(server))
    assert time.monotonic() - begin < 2
    path = tmp_path / "cache" / "weights.bin"
    assert f"put it at {path}" in str(error.value)
    path.write_bytes(CONTENT)
    assert download.cached(entry(server)) == path


# Headers of Hugging Face's redirect, and of Google's answer with the file.
HUB = {"X-Linked-ETag": f'"{SHA256}"'}
GOOGLE = {"X-Goog-Hash": f"crc32c=AAAAAA==,md5={base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}"}


@pytest.mark.parametrize(("path", "hub", "google"), [("/redirect", HUB, {}), ("/weights.bin", {}, GOOGLE)])
def test_checksum_that_only_the_server_states(server, tmp_path, path, hub, google):
    server.redirect_headers, server.headers = hub, google
    unknown = entry(server, path, sha256=None)
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match="gave another file than published"):
        download.cached(unknown)
    server.content = CONTENT
    server.answers = [1_000_000]
    cached = download.cached(unknown)
    assert cached.read_bytes() == CONTENT
    cached.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged or another file"):
        download.cached(unknown)


def test_verified_once(server, monkeypatch):
    path, known = download.cached(entry(server)), entry(server)
    monkeypatch.setattr(checksum, "digest", lambda *_: 1 / 0)
    assert download.cached(known) == path
    os.utime(path)
    with pytest.raises(ZeroDivisionError):
        download.cached(known)


def test_cache_that_is_only_readable(server, tmp_path):
    """The file is used, though no note that it was verified can be written."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".verified").touch()
    (tmp_path / "cache" / "weights.bin").write_bytes(CONTENT)
    assert download.cached(entry(server)).read_bytes() == CONTENT
    assert server.asked == []


def test_file_that_is_damaged_later(server, tmp_path):
    path = download.cached(entry(server))
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(1_234_567)
        file.write(bytes([CONTENT[1_234_567] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time of writing are as before
    with pytest.raises(
        UserError, match=r"damaged .* expected sha256:.* got sha256:.* set aside as weights.bin.damaged"
    ):
        download.cached(entry(server))
    assert names(tmp_path) == ["weights.bin.damaged"]
    assert download.cached(entry(server)).read_bytes() == CONTENT


def test_verify_file_elsewhere(server, tmp_path):
    path = tmp_path / "mine.bin"
    path.write_bytes(CONTENT)
    download.verify(path, entry(server))
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match="give it another name"):
        download.verify(path, entry(server))
    unknown = tmp_path / "unknown.bin"
    unknown.write_bytes(CONTENT)
    download.verify(unknown, entry(server, sha256=None))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "mine.bin", "unknown.bin"]


def test_two_at_once(server, capfd):
    server.pause = 0.005
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download.cached(entry(server)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert server.asked == [None]
    assert "another process downloads weights.bin" in capfd.readouterr().err


PROGRAM = """
import sys
from cnnjax.weights.hub import catalog, download
entry = ("resnet18.test", "resnet18", sys.argv[1], "weights.bin", "", 224, 256, "bilinear", "tf", 0.0, 0.0)
download.cached(catalog.Published(*entry))
"""


def test_process_that_is_killed(server, tmp_path):
    """A second process waits for the first; when the first is killed, it resumes the download."""
    server.pause = 0.05
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, server.url()])
    while server.sent < 500_000:
        assert first.poll() is None
        time.sleep(0.02)
    paths = []
    second = threading.Thread(target=lambda: paths.append(download.cached(entry(server))))
    second.start()
    time.sleep(0.2)
    assert server.asked == [None]  # the second waits
    first.kill()
    first.wait()
    server.pause = 0.0
    second.join()
    assert paths[0].read_bytes() == CONTENT
    begun = int(server.asked[1].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begun < len(CONTENT)
    assert len(server.asked) == 2
    assert names(tmp_path) == ["weights.bin"]


def test_no_space(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 << 20))
    with pytest.raises(UserError, match=r"no space for weights.bin: another 2.9 MiB .* has 2.0 free"):
        download.cached(entry(server))


def test_disk_that_fills_up(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write to .*cache \(No space left on device\)"):
        download.cached(entry(server))
    assert len(server.asked) == 1  # not tried again


def test_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write to .*file/cache .*CNNJAX_CACHE"):
        download.cached(entry(server))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv("CNNJAX_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("CNNJAX_CACHE", value)
        assert checksum.cache_folder() == tmp_path / ".cache" / "cnnjax" / "weights"
    monkeypatch.setenv("CNNJAX_CACHE", "~/here")
    assert checksum.cache_folder() == tmp_path / "here"
