"""The benchmark as a user starts it: real contenders in processes of their own, which take turns."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import pytest

SCRIPT = Path(bench.__file__)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder of a smoke run."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(SCRIPT), "--smoke", "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout
    return folder


def test_summary_has_every_figure(smoke):
    summary = json.loads((smoke / "summary.json").read_text())
    for mode in ("train", "infer"):
        for contender in ("cnnjax", "lax"):
            start = f"{mode}/fashion_cnn/{contender}"
            for name in ("images_per_second", "seconds", "compile_seconds", "peak_mib"):
                assert summary[f"{start}/{name}"] > 0
            assert summary[f"{start}/temp_mib"] >= 0
            assert summary[f"{start}/parameters"] == 1_413_834
            assert summary[f"{start}/images_per_second"] * summary[f"{start}/seconds"] == pytest.approx(64)
        ours, lax = (summary[f"{mode}/fashion_cnn/{name}/seconds"] for name in ("cnnjax", "lax"))
        assert summary[f"{mode}/fashion_cnn/time_over_lax"] == pytest.approx(ours / lax)
    assert {"cpu/model", "cpu/cores", "version/jax"} <= summary.keys()
    assert (smoke / "images_per_second.png").stat().st_size > 0


def test_contenders_take_turns(smoke):
    records = [json.loads(line) for line in (smoke / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [(record["mode"], record["round"], record["contender"]) for record in records] == [
        (mode, number, contender) for mode in ("train", "infer") for number in (1, 2) for contender in ("cnnjax", "lax")
    ]
    assert all(len(record["steps"]) == 1 for record in records)
