"""The benchmark: contenders take turns, every figure is in the summary, mistakes are one line, nets are the papers'."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import bench
import bench_nets
import jax
import pytest

from cnnjax import models
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "bench.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder that a smoke run leaves."""
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


@pytest.mark.parametrize(
    ("net", "count"),
    [
        ("resnet50", 25_557_032),
        ("mobilenet_v2", 3_504_872),
        ("xception", 22_855_952),
        ("vgg16", 138_357_544),
        ("fashion_cnn", 1_413_834),
    ],
)
def test_nets_have_the_published_number_of_parameters(net, count):
    shape, _, fields = bench_nets.NETS[net]
    model = models.create(net, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), "float32"))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"nets": ("resnet51",)},
            "--nets takes different names of fashion_cnn, vgg16, resnet50, mobilenet_v2, xception, resnet18, ",
        ),
        ({"nets": ("resnet51", "vgg16")}, "; got unknown resnet51"),
        ({"nets": ("vgg16", "vgg16")}, "; got vgg16 vgg16"),
        ({"nets": ()}, "; got nothing"),
        ({"modes": ("test",)}, "--modes takes different names of train, infer; got unknown test"),
        ({"peers": ("jax",)}, "--peers takes different names of lax, torch, torch_compile, keras; got unknown jax"),
        ({"rounds": 0}, "--rounds must be above 0, got 0"),
    ],
)
def test_an_impossible_choice_is_one_error(change, says, tmp_path):
    with pytest.raises(UserError) as error:
        bench.main(bench.Config(run_dir=tmp_path, **change))
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_peer_says_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "timm") else find("json"))
    with pytest.raises(UserError, match=r"torch needs torch, timm, not installed: pip install '\.\[bench\]'"):
        bench.main(bench.Config(peers=("torch",), run_dir=tmp_path))


class FakeWorker:
    """Answers at once, and notes how many lines of metrics.jsonl are on the disk when it is asked."""

    lines: ClassVar[list[int]] = []

    def __init__(self, job):
        self.about = {"parameters": 1, "compile_seconds": 0.5, "temp_mib": None}

    def ask(self, steps):
        (path,) = Path("runs").glob("bench-*/metrics.jsonl")
        self.lines.append(path.read_text().count("\n"))
        return {"seconds": [1.0] * steps, "peak_mib": 2.0}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_round_is_on_the_disk_before_the_next_and_each_run_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "lines", [])
    config = bench.Config(nets=("vgg16",), peers=("lax",), rounds=3, steps=2)
    bench.main(config)
    # Two contenders in three rounds, for training and then for inference.
    assert FakeWorker.lines[::2] == [0, 2, 4, 6, 8, 10]
    (folder,) = Path("runs").iterdir()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 12
    assert json.loads((folder / "config.json").read_text())["rounds"] == 3
    again = bench.main(replace(config, run_dir=tmp_path / folder))  # everything is timed anew
    assert again["train/vgg16/lax/images_per_second"] == 4
    assert (folder / "metrics.jsonl").read_text().count("\n") == 12
    with pytest.raises(UserError, match="rounds was 3 and is 4"):
        bench.main(replace(config, run_dir=folder, rounds=4))


def test_a_worker_that_dies_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.NETS, "broken", bench_nets.Net((28, 28, 1), 1))
    with pytest.raises(UserError, match=r"cnnjax on broken \(train\) ended with status 1: its message is above"):
        bench.main(bench.Config(nets=("broken",), peers=(), run_dir=tmp_path))
