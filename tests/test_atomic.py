"""Files are whole or absent."""

import json
import threading

import pytest

from cnnjax import atomic


def test_a_file_is_written_whole(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"é": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"é": [1, 2]}
    atomic.write_text(tmp_path / "a.txt", "1\n")
    atomic.write_bytes(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a.txt").read_text() == "1\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    atomic.write_csv(tmp_path / "c.csv", ("name", "n"), [("a, b", 1)])
    assert (tmp_path / "c.csv").read_text() == 'name,n\n"a, b",1\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt", "b", "c.csv"]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half():
        with atomic.writing(path) as file:
            file.write(b"new, but not all of it")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert path.read_text() == "old"
    with pytest.raises(TypeError):
        atomic.write_json(path, {"not": object()})
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_writers_of_the_same_path_do_not_mix(tmp_path):
    path = tmp_path / "a"

    def write(letter):
        for _ in range(20):
            with atomic.writing(path, sync=False) as file:
                for _ in range(50):
                    file.write(letter * 100)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert len(content) == 5000
    assert len(set(content)) == 1


def test_names_that_are_no_unicode_can_be_written(tmp_path):
    atomic.write_csv(tmp_path / "a.csv", ["name"], [["caf\udce9"], ["翘"]])
    assert (tmp_path / "a.csv").read_text("utf-8") == "name\ncaf\\udce9\n翘\n"
    atomic.write_json(tmp_path / "a.json", "caf\udce9")
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == "caf\udce9"
