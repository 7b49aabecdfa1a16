"""The script that compares the costs of networks: its figures, its files, and the settings that it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from costs import PUBLISHED, Config, chapter_rows, main
from PIL import Image

from cnnjax import models, settings
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "costs.py"


def test_the_chapters_figures_come_out():
    for line in chapter_rows():
        assert line["here"] == pytest.approx(line["chapter"], rel=0.002), line


def test_accuracies_belong_to_networks_and_are_percentages():
    assert PUBLISHED.keys() <= set(models.names())
    for top1, top5, source in PUBLISHED.values():
        assert 50 < (top1 or 51) < top5 < 100
        assert source


def test_main_leaves_the_same_files_each_time(tmp_path, capsys):
    config = settings.change(Config(), run_dir=tmp_path / "run", layers="fashion_cnn", batch=2, smoke=True)
    summary = main(config)
    files = {path.name: path.read_bytes() for path in config.output.run_dir.iterdir()}
    assert files.keys() == {
        "config.json",
        "costs.csv",
        "layers_fashion_cnn.csv",
        "accuracy.png",
        "summary.json",
        ".lock",
    }
    assert json.loads(files["summary.json"]) == summary
    assert summary["vgg16/parameters"] == 138_357_544
    assert summary["vgg16/macs"] / 2e9 == pytest.approx(15.47, abs=0.005)
    with (config.output.run_dir / "costs.csv").open(newline="") as file:
        lines = {line["model"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["alexnet_torchvision", "lenet5", "vgg16"]
    assert (lines["vgg16"]["images"], lines["vgg16"]["top1"]) == ("2×224×224×3", "71.6")
    assert (lines["lenet5"]["top1"], lines["lenet5"]["source"]) == ("", "")
    printed = capsys.readouterr().out
    assert not [text for text in ("903,400", "565.6", "conv2a", "138.36", "30.94") if text not in printed]
    with Image.open(config.output.run_dir / "accuracy.png") as image:
        assert min(image.size) > 300
    assert main(config) == summary
    assert {path.name: path.read_bytes() for path in config.output.run_dir.iterdir()} == files


def test_size_and_choice_of_networks(tmp_path):
    small, large = (
        main(settings.change(Config(), run_dir=tmp_path / str(size), models=("fashion_cnn",), image_size=size))[
            "fashion_cnn/macs"
        ]
        for size in (8, 16)
    )
    assert small < large
    assert not (tmp_path / "8" / "accuracy.png").exists()  # no accuracy is known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("vgg61",)}, "did you mean vgg1"),
        ({"models": ("fashion_cnn",), "layers": "resnet5"}, "unknown model 'resnet5'"),
        ({"batch": 0}, "--batch must be above 0"),
        ({"image_size": -1}, "--image-size must be in 1 … 8192"),
        ({"models": ("fashion_cnn",), "image_size": 7}, "fashion_cnn: expected images .* at least 8 by 8"),
    ],
)
def test_an_impossible_setting_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        main(settings.change(Config(), run_dir=tmp_path, **change))


@pytest.mark.exhaustive
def test_an_error_is_one_line_and_a_status(tmp_path):
    command = [sys.executable, SCRIPT, "--run-dir", tmp_path / "run", "--models", "vgg61"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: unknown model 'vgg61'")
    assert not (tmp_path / "run").exists()
