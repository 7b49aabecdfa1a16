"""Images that cannot be used end a run before it trains, or are left out, in class folders and annotated sets."""

from pathlib import Path

import numpy as np
import pytest
from test_data_checking import cut, photo

from cnnjax import experiment, settings
from cnnjax.data import annotations, catalog, pipeline, sources, transforms
from cnnjax.data.formats import images
from cnnjax.data.formats.folders import Folder
from cnnjax.types import UserError


@pytest.fixture
def pets(tmp_path) -> Path:
    """Class folders of 30 photos each, two of which are damaged."""
    for name in ("cat", "dog"):
        for i in range(30):
            photo(tmp_path / "pets" / name / f"{i}.jpg", i)
    cut(tmp_path / "pets/cat/3.jpg")
    (tmp_path / "pets/dog/7.jpg").write_bytes(b"")
    return tmp_path / "pets"


def test_a_source_of_files_is_checked_through_what_wraps_it(pets, tmp_path):
    folder = Folder.open(pets)
    wrapped = sources.Relabelled(sources.Mapped(folder, transforms.squeeze(8)), np.array([1, 0]), ("dog", "cat"))
    subset = sources.Subset(sources.Subset(wrapped, np.arange(59, -1, -1)), np.arange(0, 60, 2))
    assert sources.of_files(subset)
    assert not sources.of_files(sources.in_memory(sources.Subset(wrapped, np.array([0, 1]))))
    found, errors = sources.readable(subset, tmp_path / "cache")
    names = {folder.paths[59 - 2 * i].name for i in range(30)}
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
    with pytest.raises(UserError, match="no usable training image is left of dog: add images, or"):
        experiment.load(catalog.load(str(pets)), settings.Reading(skip_corrupt=True), None)


def test_nothing_left_is_an_error(pets):
    for path in pets.glob("*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the .* images can be read, such as .*\.jpg"):
        experiment.load(catalog.load(str(pets)), settings.Reading(skip_corrupt=True), None)
