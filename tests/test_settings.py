"""Groups of settings: flat flags, ranges in the types, fields that may differ on resume."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from cnnjax import cli, settings
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """Some fields and groups."""

    epochs: settings.PositiveInt = 3
    image_size: settings.PositiveInt | None = None
    zoom_out: Annotated[settings.Fraction, settings.MAY_DIFFER] = 0.5
    names: tuple[str, ...] = ("a",)
    scales: tuple[settings.Share, ...] = (1.0, 0.5)
    phases: tuple[settings.Phase, ...] = (settings.Phase("one", 1, 0.1), settings.Phase("two", 2, 0.2))
    augmentation: tyro.conf.OmitArgPrefixes[settings.Augmentation] = settings.Augmentation(flip=True)
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def test_flags_are_flat_and_so_is_what_json_says():
    flags = ["--shift", "0.25", "--run-dir", "x/y", "--phases.1.learning-rate", "0.5", "--no-flip"]
    config = tyro.cli(Config, args=flags)
    assert config == settings.change(
        Config(),
        shift=0.25,
        run_dir=Path("x/y"),
        flip=False,
        phases=(settings.Phase("one", 1, 0.1), settings.Phase("two", 2, 0.5)),
    )
    content = settings.flat(config)
    assert content == json.loads(json.dumps(content))
    assert {name: content[name] for name in ("epochs", "shift", "run_dir", "names", "flip")} == {
        "epochs": 3,
        "shift": 0.25,
        "run_dir": "x/y",
        "names": ["a"],
        "flip": False,
    }
    assert content["phases"][1]["learning_rate"] == 0.5
    assert settings.noted(config, settings.MAY_DIFFER) == ("zoom_out", "run_dir")
    with pytest.raises(TypeError, match="has no shft"):
        settings.change(config, shft=1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": 0}, "--epochs must be above 0, got 0"),
        ({"epochs": 2**31}, "--epochs must be above 0, at most 2147483647, got 2147483648"),
        ({"image_size": -1}, "--image-size must be above 0, got -1"),
        ({"zoom_out": 1.0}, "--zoom-out must be in 0 … 1, 1 excluded, got 1.0"),
        ({"shift": float("nan")}, "--shift must be in 0 … 1, 1 excluded, got nan"),
        ({"rotate": float("inf")}, "--rotate must be 0 or more, at most 1e+30, got inf"),
        ({"scales": (1.0, 0.0, 0.5)}, "--scales must be above 0, at most 1, got 0.0"),
        ({"phases": (settings.Phase("x", -1, 0.1),)}, "--phases.0.epochs must be 0 or more, got -1"),
        ({"epochs": -3, "zoom": 2.0}, "--epochs must be above 0, got -3; --zoom must be in 0 … 1, 1 excluded, got 2.0"),
    ],
)
def test_numbers_out_of_their_range_are_named(values, says):
    settings.check(Config())
    with pytest.raises(UserError) as error:
        settings.check(settings.change(Config(), **values))
    assert str(error.value) == says


def test_a_recipe_stands_where_no_flag_is_given(monkeypatch):
    def parsed(*flags):
        seen = []
        monkeypatch.setattr("sys.argv", ["script", *flags])
        cli.main(seen.append, Config, lambda config: settings.change(Config(), epochs=7, rotate=config.epochs))
        return seen[0]

    assert (parsed().epochs, parsed().augmentation.rotate) == (7, 3)
    assert (parsed("--epochs", "5").epochs, parsed("--epochs", "5").augmentation.rotate) == (5, 5)
    assert parsed("--rotate", "1").augmentation.rotate == 1


@pytest.mark.parametrize("problem", [UserError("no such thing: do this"), OSError(28, "No space left on device")])
def test_a_problem_of_the_user_is_one_line_and_exit_status_2(problem, monkeypatch, capsys):
    def run(config):
        raise problem

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        cli.main(run, Config)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {problem}\n"


def test_any_name_can_be_printed_on_any_terminal():
    code = (
        "import sys; from cnnjax import cli; from dataclasses import make_dataclass; sys.argv = ['script']\n"
        "def run(config):\n print('caf\\udce9 翘'); raise cli.UserError('th\\udce9\\n翘')\n"
        "cli.main(run, make_dataclass('Config', []))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (run.returncode, run.stdout) == (2, b"caf\\udce9 \\u7fd8\n")
    assert run.stderr == b"error: th\\xe9\\n\\u7fd8\n"


def test_main_hides_no_bug(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(ZeroDivisionError):
        cli.main(lambda config: 1 / 0, Config)
