"""The benchmark: turns of the contenders, figures in the summary, errors in one line, parameters of the networks."""

import importlib.util
import json
from pathlib import Path
from typing import ClassVar

import bench
import bench_nets
import jax
import pytest

from cnnjax import models, settings
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "bench.py"


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
    one = bench_nets.NETS[net]
    model = models.create(net, **one.fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *one.shape), "float32"))
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
        ({"nets": ("vgg16", "resnet18")}, "Keras has no resnet18: leave keras out of --peers"),
        ({"rounds": 0}, "--rounds must be above 0, got 0"),
    ],
)
def test_an_impossible_choice_is_one_error(change, says, tmp_path):
    with pytest.raises(UserError) as error:
        bench.main(settings.change(bench.Config(), run_dir=tmp_path, **change))
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_peer_says_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "timm") else find("json"))
    with pytest.raises(UserError, match=r"torch needs torch, timm, not installed: pip install '\.\[bench\]'"):
        bench.main(settings.change(bench.Config(), peers=("torch",), run_dir=tmp_path))


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
    config = settings.change(bench.Config(), nets=("vgg16",), peers=("lax",), rounds=3, steps=2)
    bench.main(config)
    # Two contenders in three rounds, for training and then for inference.
    assert FakeWorker.lines[::2] == [0, 2, 4, 6, 8, 10]
    (folder,) = Path("runs").iterdir()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 12
    assert json.loads((folder / "config.json").read_text())["rounds"] == 3
    again = bench.main(settings.change(config, run_dir=tmp_path / folder))  # everything is timed again
    assert again["train/vgg16/lax/images_per_second"] == 4
    assert (folder / "metrics.jsonl").read_text().count("\n") == 12
    with pytest.raises(UserError, match="rounds was 3 and is 4"):
        bench.main(settings.change(config, run_dir=folder, rounds=4))


def test_a_worker_that_dies_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.NETS, "broken", bench_nets.Net((28, 28, 1), 1))
    with pytest.raises(UserError, match=r"cnnjax on broken \(train\) ended with status 1: its message is above"):
        bench.main(settings.change(bench.Config(), nets=("broken",), peers=(), run_dir=tmp_path))
