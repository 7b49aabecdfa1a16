"""data.formats.split_folders: the usual names of splits, wrapped or not, are understood; anything else is an error."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import catalog
from cnnjax.data.formats import split_folders
from cnnjax.types import UserError


def make(root: Path, *files: str) -> Path:
    """Writes a small image for each file, and empty folders for names that end in a slash."""
    rng = np.random.default_rng(0)
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return root


def classes(*folders: str) -> list[str]:
    return [f"{folder}/{name}/1.png" for folder in folders for name in ("cat", "dog")]


def found(root: Path) -> dict[str, str]:
    return {part: path.relative_to(root).as_posix() for part, path in split_folders.find(root).items()}


@pytest.mark.parametrize(
    ("folders", "want"),
    [
        (("train", "validation", "test"), ("train", "validation", "test")),  # Keras
        (("Training", "Testing"), ("Training", None, "Testing")),  # Kaggle's brain tumors, fruits-360
        (("TRAIN", "Dev", "Evaluation"), ("TRAIN", "Dev", "Evaluation")),
        (("training", "val"), ("training", "val", None)),
        (("train", "valid", "test"), ("train", "valid", "test")),  # Roboflow
        (("seg_train", "seg_test"), ("seg_train", None, "seg_test")),
        (("training_set", "test_set"), ("training_set", None, "test_set")),
        (("photos/train", "photos/test"), ("photos/train", None, "photos/test")),  # wrapped once more
        (("train/train", "test/test"), ("train/train", None, "test/test")),
        (("seg_train/seg_train", "seg_test/seg_test"), ("seg_train/seg_train", None, "seg_test/seg_test")),
        (("train",), ("train", None, None)),
    ],
)
def test_usual_names_are_understood(tmp_path: Path, folders, want):
    make(tmp_path, *classes(*folders), "__MACOSX/photos/._1.png", ".cache/1.png", "notes/", "readme.png")
    assert found(tmp_path) == {part: name for part, name in zip(("train", "valid", "test"), want, strict=True) if name}


@pytest.mark.parametrize(
    "files",
    [
        ["bus/1.png", "train/1.png"],  # a vehicle
        ["train_station/1.png", "bus_station/1.png"],
        ["test_tube/1.png", "flask/1.png"],
        ["trainer/1.png", "tester/1.png"],
        ["photos/bus/1.png", "photos/train/1.png"],
    ],
)
def test_classes_may_have_such_words_in_their_names(tmp_path: Path, files):
    assert found(make(tmp_path, *files)) == {"all": "."}


@pytest.mark.parametrize(
    ("files", "understood", "says"),
    [
        (
            ["train/cat.0.jpg", "test/cat.1.jpg"],
            "train as train, test as test",
            "no class folders in train and test: make",
        ),
        (["Training/1.png", "Testing/1.png"], "Training as train, Testing as test", "no class folders in Training and"),
        ([*classes("train"), "test/1.png", "test/2.png"], "train as train, test as test", "no class folders in test: "),
        ([*classes("train"), "test/"], "train as train, test as test", "no class folders in test: "),
        (["cat/1.png", "dog/1.png", "test/1.png"], "test as test", "no class folders in test: "),
        (
            ["train/train/1.png", "test/1.png"],
            "train/train as train, test as test",
            "no class folders in train and test",
        ),
        (
            classes("train", "test", "extra"),
            "train as train, test as test",
            "the images in extra beside them would not be",
        ),
        ([*classes("train", "test"), "extra/1.png"], "train as train, test as test", "the images in extra beside them"),
        ([*classes("seg_train", "seg_test"), "seg_pred/1.png"], "seg_train as train", "the images in seg_pred beside"),
        (
            ["bus/1.png", "train/steam/1.png"],
            "train as train",
            "the images in bus beside .* if these are classes, give",
        ),
        (classes("a/train", "a/test", "a/extra"), "train as train, test as test", "the images in extra beside them"),
        (classes("train", "val", "valid"), "train as train, val as valid", "val and valid are the same split: merge"),
        (classes("train", "Train"), "Train as train", "Train and train are the same split: merge"),
        (
            classes("val", "test"),
            "val as valid, test as test",
            "it has no folder train with a sub-folder for each class",
        ),
    ],
)
def test_what_is_unclear_is_an_error_that_shows_what_was_understood(tmp_path: Path, files, understood, says):
    make(tmp_path, *files)
    with pytest.raises(UserError, match=f"{re.escape(understood)}.*; but .*{says}") as error:
        catalog.load(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unequal_nesting_is_an_error(tmp_path: Path):
    make(tmp_path, *classes("train", "test/all"))
    with pytest.raises(
        UserError, match=r"test: its classes \['all'\] are not those of the training set \['cat', 'dog'\]"
    ):
        catalog.load(str(tmp_path))


def test_labels_of_a_split_that_lacks_classes_are_those_of_training(tmp_path: Path):
    make(tmp_path, *classes("train"), "train/ant/1.png", "test/dog/1.png", "test/ant/", "valid/cat/1.png")
    opened = split_folders.open_parts(split_folders.find(tmp_path))
    assert {part: (folder.classes, folder.labels.tolist()) for part, folder in opened.items()} == {
        "train": (("ant", "cat", "dog"), [0, 1, 2]),
        "valid": (("ant", "cat", "dog"), [1]),
        "test": (("ant", "cat", "dog"), [2]),
    }


def test_links_that_go_round_do_not_matter(tmp_path: Path):
    make(tmp_path, *classes("train", "test"))
    (tmp_path / "train" / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "up").symlink_to(tmp_path)
    assert found(tmp_path) == {"train": "train", "test": "test"}
