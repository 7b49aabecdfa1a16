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
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "inspect_data.py"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bccd(shared, tmp_path, capsys):
    summary = main(settings.change(Config(shared / "data/bccd"), run_dir=tmp_path, samples=5))
    assert summary == {"kind": "voc", "images": 364, "boxes": 4886, "classes": 3, "faults/degenerate": 2}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    counts = {row["class"]: (row["images"], row["boxes"]) for row in rows(tmp_path / "classes.csv")}
    assert counts == {"Platelets": ("201", "361"), "RBC": ("349", "4153"), "WBC": ("358", "372")}
    faults = rows(tmp_path / "faults.csv")
    assert [Path(row["file"]).name for row in faults] == ["BloodImage_00338.xml", "BloodImage_00343.xml"]
    printed = capsys.readouterr().out
    assert not [text for text in ("4153", "box width", "640", "degenerate", "2 faults") if text not in printed]
    with Image.open(tmp_path / "samples.png") as image:
        assert min(image.size) > 300


def test_coco(shared, tmp_path):
    summary = main(
        settings.change(Config(shared / "data/coco_mini"), split="boxes_val2017", run_dir=tmp_path, smoke=True)
    )
    assert (summary["kind"], summary["images"], summary["boxes"], summary["classes"]) == ("coco", 128, 898, 80)


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
