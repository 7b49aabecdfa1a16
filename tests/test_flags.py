"""Flags of all scripts: whatever is typed gives settings within their ranges, or one short error."""

import importlib
import io
import random
import sys
import time
from pathlib import Path

import pytest
import tyro

from cnnjax import experiment, settings, text
from cnnjax.types import UserError

SCRIPTS = sorted(path.stem for path in (Path(__file__).parent.parent / "experiments").glob("*.py"))
SCRIPTS = [name for name in SCRIPTS if hasattr(importlib.import_module(name), "Config")]
TEXTS = (
    *("", "-", "0", "-1", "1", "3", "0.5", "1e400", "-1e400", "nan", "inf", "1e308", "1e-400", "0x10", "١٢"),
    *(str(2**31 - 1), str(2**31), str(2**63), str(-(2**63)), "9" * 10000, "1_000", "1,5", "None", "True", "[", "[]"),
    *("x" * 10000, "a\nb", "a\x00b", "\udce9", "汉字", "~", "~nobody/x", "/", "/dev/null/x", "../..", "train[5:2]"),
)


def flags_of(config):
    """Names of all flags of a config, as on the command line."""
    return [f"--{name.replace('_', '-')}" for name in settings.flat(config)]


def sample(rng, name, config):
    """Arguments of a command line: some of the script's flags with a text or none, and texts without a flag."""
    words = []
    for _ in range(rng.randint(1, 2)):
        words += [rng.choice(flags_of(config))] if rng.random() < 0.95 else []
        words += [rng.choice(TEXTS)] if rng.random() < 0.95 else []
    return ["data", *words] if name == "inspect_data" else words


def read(name, words):
    """Settings that a script makes of its arguments, checked; UserError and tyro's SystemExit pass."""
    script = importlib.import_module(name)
    config = tyro.cli(script.Config, args=words)
    resolve = getattr(script, "resolve", lambda config: experiment.resolve(config, "run"))
    return resolve(script.recipe(config.dataset) if hasattr(script, "recipe") else config)


@pytest.mark.parametrize("name", SCRIPTS)
def test_any_flags_give_settings_or_one_short_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # takes any text, as the stream does that cli.main prepares
    rng, outcomes = random.Random(name), set()
    start = importlib.import_module(name).Config(*(["data"] if name == "inspect_data" else []))
    for _ in range(-(-300 // len(SCRIPTS))):
        words, began = sample(rng, name, start), time.thread_time()
        try:
            read(name, words)
            outcomes.add("settings")
        except UserError as error:
            message = text.message(str(error))
            assert len(message.splitlines()) == 1, words
            assert len(message) <= 1010, words
            outcomes.add("error")
        except SystemExit as usage:
            outcomes.add("usage" if usage.code == 2 else "end")
        assert time.thread_time() - began < 1, words
    assert {"usage"} < outcomes <= {"usage", "error", "settings"}
    assert not list(tmp_path.iterdir())
