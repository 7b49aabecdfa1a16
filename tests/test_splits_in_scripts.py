"""Scripts say the splits before they train; without a test split they evaluate valid, and no figure is of test."""

import json
import shutil
from pathlib import Path

import classify
import evaluate
import flowers
import localize
import numpy as np
import pytest
from PIL import Image

from cnnjax import experiment, settings
from cnnjax.data import catalog, sources

pytestmark = pytest.mark.usefixtures("one_device")
HEAD = settings.Phase("frozen", 1, train_from="head")


def check(summary: dict, run_dir: Path, printed: str, counts: dict[str, int]) -> None:
    """Checks a run without a test split: figures, facts and words."""
    assert "valid/accuracy" in summary
    assert not [name for name in summary if name.startswith("test")]
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    facts = json.loads((run_dir / "config.json").read_text())["facts"]
    assert {part: facts.get(part) for part in ("train", "valid", "test")} == {**counts, "test": None}
    before, _, after = printed.partition("epoch 1")
    assert "no test: valid is evaluated at the end" in before
    assert "all " in before
    assert "valid accuracy" in after
    assert "test accuracy" not in after


def given(photos: Path, root: Path) -> Path:
    """Writes the folders Train and Val of the photos."""
    for source in sorted(photos.glob("*/*.png")):
        part = "Train" if int(source.stem) < 16 else "Val"
        target = root / part / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return root


def test_classify(photos, tmp_path, capsys):
    config = settings.change(classify.recipe(str(given(photos, tmp_path / "data"))), model="digits_cnn", image_size=16)
    summary = classify.main(settings.change(config, run_dir=tmp_path / "run", smoke=True))
    check(summary, tmp_path / "run", capsys.readouterr().out, {"train": 48, "valid": 24})
    assert (tmp_path / "run" / "confusion.png").is_file()


@pytest.mark.exhaustive
def test_flowers(photos, tmp_path, capsys):
    values = {"dataset": str(photos), "test_fraction": 0.0, "phases": (HEAD,), "run_dir": tmp_path, "smoke": True}
    summary = flowers.main(settings.change(flowers.Config(), **values))
    check(summary, tmp_path, capsys.readouterr().out, {"train": 61, "valid": 11})


@pytest.mark.exhaustive
def test_localize(rectangles, tmp_path, capsys):
    values = {"dataset": rectangles, "test_fraction": 0.0, "phases": (HEAD,), "run_dir": tmp_path, "smoke": True}
    summary = localize.main(settings.change(localize.Config(), **values))
    check(summary, tmp_path, capsys.readouterr().out, {"train": 51, "valid": 9})


def arrays(labels: list[int], classes: tuple[str, ...]) -> sources.Arrays:
    return sources.Arrays({"image": np.zeros((len(labels), 4, 4, 3), np.uint8), "label": np.array(labels)}, classes)


def test_splits_are_shown_with_the_classes_that_one_lacks(capsys):
    classes = ("cat", "[dog]", "emu")
    experiment.show_splits(
        catalog.Splits(arrays([0, 0, 1, 2], classes), arrays([1, 2, 0], classes), arrays([0], classes))
    )
    printed = capsys.readouterr().out
    lines = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["cat", "2", "1", "1"] in lines
    assert ["[dog]", "1", "1", "0"] in lines
    assert ["all", "3", "4", "3", "1"] in lines
    assert "test has no image of [dog], emu: it says nothing of them" in printed


def test_many_classes_are_shown_by_name(capsys):
    classes = tuple(f"class{i}" for i in range(30))
    whole = arrays(list(range(30)), classes)
    experiment.show_splits(catalog.Splits(whole, whole, None))
    printed = capsys.readouterr().out
    assert "all 30" in printed
    assert "classes: class0, class1, " in printed
    assert "class19, …" in printed
    assert "class29" not in printed


def test_labels_that_only_reading_tells_are_not_counted(capsys):
    class Unread:
        classes = ("cat", "dog")

        def __len__(self):
            return 5

        def __getitem__(self, index):
            raise AssertionError("read")

    experiment.show_splits(catalog.Splits(Unread(), Unread(), None))
    assert "all 2" in capsys.readouterr().out


def test_boxes_are_counted_where_images_have_any_number(shared, capsys):
    splits = catalog.load_boxes(str(shared / "data/bccd"))
    experiment.show_splits(splits)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["boxes", "and", "images"] in lines
    assert ["Platelets", "209", "83", "69"] in lines
    assert ["images", "205", "87", "72"] in lines


def test_one_class_is_enough_to_evaluate(tmp_path):
    photo = tmp_path / "photos" / "n02123045" / "cat.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (140, 150), "gray").save(photo)
    config = settings.change(evaluate.Config(), dataset=str(tmp_path / "photos"), smoke=True, run_dir=tmp_path / "run")
    assert evaluate.main(config)["count"] == 1
