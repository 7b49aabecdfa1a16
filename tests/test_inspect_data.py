"""Check of a data set's labels: its counts, faults, figures and files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from inspect_data import Config, main
from PIL import Image

from cnnjax import settings
from cnnjax.data import catalog
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "inspect_data.py"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bccd(shared, tmp_path, capsys):
    summary = main(settings.change(Config(shared / "data/bccd"), run_dir=tmp_path, samples=5))
    faults = {"faults/alike in two splits": 1, "faults/degenerate": 2}
    assert summary == {"kind": "voc", "images": 364, "boxes": 4886, "classes": 3, **faults}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    counts = {row["class"]: (row["images"], row["boxes"]) for row in rows(tmp_path / "classes.csv")}
    assert counts == {"Platelets": ("201", "361"), "RBC": ("349", "4153"), "WBC": ("358", "372")}
    faults = rows(tmp_path / "faults.csv")
    assert {Path(row["file"]).name: Path(row["what"]).name for row in faults if "alike" in row["kind"]} == {
        "BloodImage_00037.jpg": "BloodImage_00038.jpg"  # one field of view at two focal planes, in train and in test
    }
    names = {Path(row["file"]).name for row in faults if row["kind"] == "degenerate"}
    assert names == {"BloodImage_00338.xml", "BloodImage_00343.xml"}
    printed = capsys.readouterr().out
    assert not [
        text
        for text in ("4153", "box width", "640", "degenerate", "3 faults", "train: 205 images")
        if text not in printed
    ]
    with Image.open(tmp_path / "samples.png") as image:
        assert min(image.size) > 300


def test_coco(shared, tmp_path):
    summary = main(
        settings.change(Config(shared / "data/coco_mini"), split="boxes_val2017", run_dir=tmp_path, smoke=True)
    )
    assert (summary["kind"], summary["images"], summary["boxes"], summary["classes"]) == ("coco", 128, 898, 80)


def test_images_with_masks(tmp_path, capsys):
    root, rng = tmp_path / "streets", np.random.default_rng(0)
    for split in ("train", "test"):
        for name in (split, f"{split}annot"):
            (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(root / split / f"{i}.png")
            mask = np.full((6, 8), 255, np.uint8)
            mask[:3], mask[3, : 4 * (split == "train")] = 0, 1
            Image.fromarray(mask if (split, i) != ("test", 2) else mask[:5]).save(root / f"{split}annot" / f"{i}.png")
    (root / "classes.txt").write_text("road\nsky\n")
    summary = main(settings.change(Config(root), run_dir=tmp_path / "run", smoke=True))
    assert (summary["kind"], summary["images"], summary["classes"]) == ("images with masks", 5, 2)
    assert {key: x for key, x in summary.items() if "faults" in key} == {
        "faults/unusable": 1,
        "faults/class missing": 1,
    }
    counts = {row["class"]: row for row in rows(tmp_path / "run" / "classes.csv")}
    assert (counts["road"]["images"], counts["sky"]["images"], counts["sky"]["test"]) == ("5", "3", "0")
    assert (counts["road"]["pixels"], counts["sky"]["pixels"]) == ("90.91%", "9.09%")
    fault = next(row for row in rows(tmp_path / "run" / "faults.csv") if row["kind"] == "unusable")
    assert "2.png: it has 8×5 pixels, its image 8×6: make them equal" in fault["what"]
    with pytest.raises(UserError, match="has images with masks and the splits train, test: leave --split out"):
        main(settings.change(Config(root), split="valid", run_dir=tmp_path / "other"))


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "photos"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 30, 40, 3), np.uint8)
    for i, name in enumerate(["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(root / name)
    (root / "dog/2 copy.png").write_bytes((root / "dog/2.png").read_bytes())
    (root / "dog/3.png").write_bytes((root / "cat/1.png").read_bytes())
    (root / "dog/4.png").write_bytes((root / "cat/1.png").read_bytes()[:200])
    return root


def test_class_folders(folders, tmp_path, capsys):
    run_dir = tmp_path / "run"
    summary = main(settings.change(Config(folders), run_dir=run_dir))
    faults = {"faults/duplicate": 1, "faults/two classes": 1, "faults/unreadable picture": 1}
    assert summary == {"kind": "class folders", "images": 6, "boxes": 0, "classes": 2, **faults}
    assert {row["class"]: row["images"] for row in rows(run_dir / "classes.csv")} == {"cat": "2", "dog": "4"}
    found = {(Path(row["file"]).name, row["kind"]) for row in rows(run_dir / "faults.csv")}
    assert found == {("2.png", "duplicate"), ("3.png", "two classes"), ("4.png", "unreadable picture")}
    assert (run_dir / "samples.png").is_file()
    assert "two classes" in capsys.readouterr().out


def test_what_is_impossible_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="has class folders and no splits"):
        main(settings.change(Config(folders), split="train", run_dir=tmp_path / "run"))
    with pytest.raises(UserError, match="--samples must be above 0"):
        main(settings.change(Config(folders), samples=0))
    with pytest.raises(UserError, match=r"no annotations in a known format; .*or class folders, but"):
        main(Config(folders / "cat"))
    command = [sys.executable, SCRIPT, tmp_path / "none", "--run-dir", tmp_path / "run"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "no such file or folder" in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_without_any_object(tmp_path):
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.xml").write_text(
            "<annotation><size><width>40</width><height>30</height></size></annotation>"
        )
    summary = main(settings.change(Config(tmp_path), run_dir=tmp_path / "run"))
    assert summary == {"kind": "voc", "images": 2, "boxes": 0, "classes": 0, "faults/no objects": 2}


def test_photos_in_two_splits_and_classes_that_one_lacks(tmp_path, capsys):
    root = tmp_path / "plants"
    smooth = np.random.default_rng(1).integers(0, 256, (9, 6, 8, 3), np.uint8)
    photos = [Image.fromarray(each).resize((160, 120), Image.Resampling.BICUBIC) for each in smooth]
    names = ["Train/fern/0", "Train/fern/1", "Train/moss/2", "Train/moss/3", "Train/rose/4", "Val/fern/5", "Val/moss/6"]
    for photo, name in zip(photos, names, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(root / f"{name}.png")
    (root / "Val/moss/same.png").write_bytes((root / "Train/moss/2.png").read_bytes())
    (root / "Val/fern/wrong.png").write_bytes((root / "Train/moss/3.png").read_bytes())
    photos[0].resize((80, 60)).save(root / "Val/fern/small.jpg", quality=60)
    summary = main(settings.change(Config(root), run_dir=tmp_path / "run", smoke=True))
    assert {name: n for name, n in summary.items() if "faults" in name} == {
        "faults/alike in two splits": 1, "faults/class missing": 1, "faults/in two splits": 2, "faults/two classes": 1,
    }  # fmt: skip
    found = {(Path(row["file"]).name, row["kind"]): row for row in rows(tmp_path / "run/faults.csv")}
    assert found["same.png", "in two splits"]["what"] == f"same as {root}/Train/moss/2.png"
    assert ("wrong.png", "in two splits") in found
    assert ("wrong.png", "two classes") in found
    assert found["small.jpg", "alike in two splits"]["what"] == f"same as {root}/Train/fern/0.png"
    assert found["plants", "class missing"]["object"] == "rose"
    counts = {row["class"]: (row["train"], row["valid"]) for row in rows(tmp_path / "run/classes.csv")}
    assert counts == {"fern": ("2", "3"), "moss": ("2", "2"), "rose": ("1", "0")}
    assert "train: 5 images; valid: 5 images" in capsys.readouterr().out
    alone = main(settings.change(Config(root), split="valid", run_dir=tmp_path / "valid", smoke=True))
    assert alone == {"kind": "class folders", "images": 5, "boxes": 0, "classes": 3}
    with pytest.raises(UserError, match="the splits train, valid: leave --split out"):
        main(settings.change(Config(root), split="test", run_dir=tmp_path / "other"))


def test_what_training_refuses_is_refused_with_its_error(folders, tmp_path):
    folders.rename(tmp_path / "train")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "cat.png")
    with pytest.raises(UserError) as ours:
        main(settings.change(Config(tmp_path), run_dir=tmp_path / "run"))
    with pytest.raises(UserError) as trainings:
        catalog.load(str(tmp_path))
    assert str(trainings.value) in str(ours.value)


def test_one_class_is_enough_to_look_at(tmp_path):
    (tmp_path / "photos/cat").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "photos/cat/1.png")
    summary = main(settings.change(Config(tmp_path / "photos"), run_dir=tmp_path / "run", smoke=True))
    assert (summary["images"], summary["classes"]) == (1, 1)
