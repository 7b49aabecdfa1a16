"""Check of files before a run: verdicts agree with reading, are kept, and are found again only for unchanged files."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax import experiment, settings
from cnnjax.data import annotations, catalog, checking, pipeline, sources, transforms
from cnnjax.data.formats import images
from cnnjax.data.formats.folders import Folder
from cnnjax.types import UserError

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


# ---- sources, and scripts that train ----


@pytest.fixture
def pets(tmp_path) -> Path:
    """Class folders of 30 photos each, two of which are damaged."""
    for name in ("cat", "dog"):
        for i in range(30):
            photo(tmp_path / "pets" / name / f"{i}.jpg", i)
    cut(tmp_path / "pets/cat/3.jpg")
    (tmp_path / "pets/dog/7.jpg").write_bytes(b"")
    return tmp_path / "pets"


def test_a_source_of_files_is_checked_through_what_wraps_it(pets, tmp_path, examined):
    folder = Folder.open(pets)
    wrapped = sources.Relabelled(sources.Mapped(folder, transforms.squeeze(8)), np.array([1, 0]), ("dog", "cat"))
    subset = sources.Subset(sources.Subset(wrapped, np.arange(59, -1, -1)), np.arange(0, 60, 2))
    assert sources.of_files(subset)
    assert not sources.of_files(sources.in_memory(sources.Subset(wrapped, np.array([0, 1]))))
    found, errors = sources.readable(subset, tmp_path / "cache")
    names = {folder.paths[59 - 2 * i].name for i in range(30)}
    assert len(examined) == 30
    assert len(found) + len(errors) == 30
    assert len(errors) == len({"3.jpg", "7.jpg"} & names) > 0
    assert sources.in_memory(found).fields["image"].shape == (len(found), 8, 8, 3)


READING = settings.Reading()


def test_training_stops_at_bad_files_or_leaves_them_out(pets, capsys):
    splits = catalog.load(str(pets))
    for memory in (0, 2**31):
        reading = settings.Reading(in_memory_bytes=memory)
        with pytest.raises(UserError) as error:
            experiment.load(splits, reading, transforms.squeeze(8))
        assert str(error.value).endswith(
            ": 2 of 60 images cannot be used: repair or remove them, or give --skip-corrupt"
        )
        assert f"{pets}/cat/3.jpg: not a readable image (" in str(error.value)
        assert f"{pets}/dog/7.jpg: not a readable image (an empty file)" in str(error.value)
        capsys.readouterr()
        loaded = experiment.load(
            splits, settings.Reading(in_memory_bytes=memory, skip_corrupt=True), transforms.squeeze(8)
        )
        assert sum(map(len, vars(loaded).values())) == 58
        printed = capsys.readouterr().out
        assert f"skipped: {pets}/cat/3.jpg: not a readable image (" in printed
        assert f"skipped: {pets}/dog/7.jpg: not a readable image (an empty file)" in printed
        assert printed.count(" images, ") == 3
        # Examples and their order are fixed, so that each batch is a function of seed and step.
        on, there = pipeline.train_batches(loaded.train, 8, 5), pipeline.train_batches(loaded.train, 8, 5, 2)
        third = [next(on) for _ in range(3)][2]
        for name, values in next(there).items():
            np.testing.assert_array_equal(values, third[name])


def test_many_bad_files_are_counted_and_the_first_named(pets, capsys):
    for i in range(25):
        cut(pets / "dog" / f"{i}.jpg")
    with pytest.raises(UserError, match=r"\.jpg: .*; .*\.jpg: .*; .*\.jpg: .*; …: 26 of 60 images cannot be used"):
        experiment.load(catalog.load(str(pets)), READING, None)
    experiment.load(catalog.load(str(pets)), settings.Reading(skip_corrupt=True), None)
    printed = capsys.readouterr().out
    assert printed.count("not a readable image") == 20
    assert "skipped: … 6 more, which inspect_data.py lists" in printed


@pytest.mark.parametrize("damage", ["missing", "cut", "grown"])
def test_annotated_sets_are_checked_too(rectangles, tmp_path, damage, capsys):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
        for path in (rectangles / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    bad, says = tmp_path / "JPEGImages" / "7.png", "not a readable image"
    if damage == "missing":
        bad.unlink()
        says = r"not a readable image \(there is no such file\)"
    elif damage == "cut":
        cut(photo(bad, size=(80, 60)))
    else:
        photo(bad, size=(160, 120))
        says = "labelled at 80×60, but it has 160×120 pixels: label it again, or correct the size in its annotation"
    splits = catalog.load_annotated(tmp_path, 0.2, 0.2, objects=1)
    with pytest.raises(UserError, match=rf"7\.png: {says}.*: 1 of 60 images cannot be used: .*--skip-corrupt"):
        experiment.load(splits, READING, transforms.squeeze(8))
    loaded = experiment.load(splits, settings.Reading(skip_corrupt=True), transforms.squeeze(8))
    assert sum(map(len, vars(loaded).values())) == 59
    assert "7.png: " in capsys.readouterr().out


def test_a_labelled_photo_that_would_be_scaled_is_named(tmp_path, monkeypatch):
    photo(tmp_path / "a.jpg")
    box = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    size = "<size><width>60</width><height>40</height></size>"
    (tmp_path / "a.xml").write_text(f"<annotation>{size}{box}</annotation>")
    source = annotations.AnnotatedImages(annotations.open(tmp_path))
    assert source.problems(np.arange(1), None) == [""]
    monkeypatch.setattr(images.preparation, "MOST_PIXELS", 2000)
    says = "a.jpg: too large to be decoded with its boxes: make it and its labels smaller"
    assert source.problems(np.arange(1), None)[0].endswith(says)
    with pytest.raises(UserError, match=says):
        source[0]


def test_a_class_without_a_usable_image_is_an_error(pets):
    for i in range(30):
        cut(pets / "dog" / f"{i}.jpg")
    with pytest.raises(UserError, match="no training image that can be used is left of dog: add images, or"):
        experiment.load(catalog.load(str(pets)), settings.Reading(skip_corrupt=True), None)


def test_nothing_left_is_an_error(pets):
    for path in pets.glob("*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the .* images can be read, such as .*\.jpg"):
        experiment.load(catalog.load(str(pets)), settings.Reading(skip_corrupt=True), None)
