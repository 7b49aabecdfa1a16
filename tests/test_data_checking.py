"""Check of files before a run: verdicts agree with reading, are kept, and are found again only for unchanged files."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import checking
from cnnjax.data.formats import images

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def photo(path: Path, value: int = 0, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(PIXELS, value, 0)).resize(size).save(path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


@pytest.fixture
def examined(monkeypatch) -> list[str]:
    """Names of the files that are examined from now on."""
    names, examine = [], images.examine
    monkeypatch.setattr(images, "examine", lambda path: (names.append(path.name), examine(path))[1])
    return names


def test_verdicts_are_sizes_or_reasons_in_the_order_of_the_paths(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [photo(tmp_path / "b.jpg"), tmp_path / "gone.png", photo(tmp_path / "x" / "a.png", size=(9, 7))]
    paths += [photo(tmp_path / "cut.jpg"), tmp_path / "turned.jpg", paths[0]]
    cut(paths[3])
    Image.fromarray(PIXELS).save(paths[4], exif=exif)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = checking.verdicts(paths, cache)
        assert [each[:3] for each in found] == [
            (60, 40, False), (0, 0, False), (9, 7, False), (0, 0, False), (40, 60, True), (60, 40, False)
        ]  # fmt: skip
        assert found[1].error == "not a readable image (there is no such file)"
        assert found[3].error.startswith("not a readable image (")
        assert [bool(each.error) for each in found] == [False, True, False, True, False, False]


def test_only_what_is_new_or_changed_is_examined(tmp_path, examined):
    paths, cache = [photo(tmp_path / "a" / f"{i}.jpg", i) for i in range(4)], tmp_path / "cache"
    cut(paths[1])
    first = checking.verdicts(paths[:3], cache)
    assert sorted(examined) == ["0.jpg", "1.jpg", "2.jpg"]
    examined.clear()
    assert checking.verdicts(paths, cache)[:3] == first
    assert checking.verdicts(paths, cache)[:3] == first
    assert examined == ["3.jpg"]
    photo(paths[1])
    os.utime(paths[2], ns=(1, 1))
    examined.clear()
    assert checking.verdicts(paths, cache)[1] == (60, 40, False, "")
    assert sorted(examined) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[["0.jpg", [1], []]]', b"\xff"])
def test_a_damaged_cache_is_made_anew(tmp_path, examined, content):
    paths, cache = [photo(tmp_path / "a" / "0.jpg")], tmp_path / "cache"
    first = checking.verdicts(paths, cache)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert checking.verdicts(paths, cache) == checking.verdicts(paths, cache) == first
    assert examined == ["0.jpg", "0.jpg"]


def test_a_cache_that_cannot_be_written_and_odd_names_do_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "caf\udce9.jpg"
    photo(tmp_path / "a.jpg").rename(path)
    for cache in (tmp_path / "file" / "cache", tmp_path / "cache", tmp_path / "cache"):
        assert checking.verdicts([path], cache) == [(60, 40, False, "")]
        impossible = [tmp_path / "a\0.jpg", tmp_path / "a\0b" / "c.jpg", tmp_path / ("long" * 99) / "c.jpg"]
        assert all(each.error.startswith("not a readable image") for each in checking.verdicts(impossible, cache))


@pytest.mark.filterwarnings("ignore:::PIL")  # about some of the damage
def test_verdicts_agree_with_reading(tmp_path):
    """Every kind of damage is found by the quick check exactly where reading finds it."""
    from test_data_images_damaged import damaged, samples

    rng, kinds = np.random.default_rng(3), list(samples().items())
    paths = [tmp_path / f"{i} {kinds[i % len(kinds)][0]}.jpg" for i in range(900)]
    for i, path in enumerate(paths):
        path.write_bytes(damaged(kinds[i % len(kinds)][1], rng))
    differ, bad = [], 0
    for path, verdict in zip(paths, checking.verdicts(paths, None), strict=True):
        try:
            size = images.decode(path, 3, path, upright=True).shape[1::-1]
        except images.CorruptImageError:
            size, bad = (0, 0), bad + 1
        if size != verdict[:2]:
            differ.append((path.name, size, verdict))
    assert differ == []
    assert 200 < bad < 800
