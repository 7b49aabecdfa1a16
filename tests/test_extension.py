"""Extension of the package: an architecture, a task, two file formats and a data set, each added by one file, and used.

They are added to a copy of the package, in which no other file is changed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

ARCHITECTURE = '''
"""A network of one convolution."""

from typing import ClassVar

import flax.linen as linen

from cnnjax import nn


class Spot(linen.Module):
    image_shape: ClassVar = (16, 16, 3)
    aux_weights: ClassVar = {}
    strides: ClassVar = {"last": 4}
    num_classes: int | None = 2
    features: int = 8

    @linen.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(nn.Conv(self.features, 3, strides=4, name="conv")(images))
        endpoints = {"last": x, "pooled": nn.global_avg_pool(x)}
        if self.num_classes is None:
            return None, endpoints
        return nn.Head(self.num_classes, name="head")(endpoints["pooled"], train), endpoints


VARIANTS = {"spot": Spot}
'''

TASK = '''
"""Regression of the boxes' mean brightness."""

import jax.numpy as jnp

from cnnjax.types import Picture, Task


def network(create, classes):
    return create(num_classes=1)


def task(model, prepare, classes):
    def sums(variables, images, batch, mask, **kwargs):
        error = model.apply(variables, images, **kwargs)[0][:, 0] - batch["brightness"]
        return {"squared": (mask * error**2).sum(), "count": mask.sum()}, {"error": error}

    def loss_fn(variables, batch, key):
        found, _ = sums(variables, batch["image"], batch, jnp.ones(len(batch["image"])), train=True)
        return found["squared"] / found["count"], ({}, found)

    return Task(
        loss_fn=loss_fn,
        eval_fn=lambda variables, batch: sums(variables, prepare(batch["image"]), batch, batch["example_mask"]),
        figures=lambda sums, rows: {"mse": float(sums["squared"] / sums["count"]),
                                    "score": -float(sums["squared"] / sums["count"]),
                                    **({"worst": float(abs(rows["error"]).max())} if rows else {})},
        predict=lambda variables, images: {"brightness": model.apply(variables, prepare(images))[0][:, 0]},
        describe=lambda prediction, most: {"brightness": round(float(prediction["brightness"]), 3)},
        draw=lambda example, prediction: Picture(example["image"], f"{prediction['brightness']:.2f}"),
        best="score",
    )
'''

ANNOTATIONS = '''
"""Text files: a line for each box, "file left top right bottom class"."""

from cnnjax.data.formats.annotated import AnnotatedImage, Labelled, Read

EXPECTED = "a text file of spots"


def read_annotations(path, split):
    if path.suffix != ".spots":
        return None
    images = {}
    for line in path.read_text().splitlines():
        name, *box, label = line.split()
        images.setdefault(name, []).append(Labelled(f"line of {name}", label, tuple(map(float, box))))
    found = [AnnotatedImage(name, path, path.parent / name, None, boxes) for name, boxes in images.items()]
    return Read(found, tuple(sorted({each.label for boxes in images.values() for each in boxes})))
'''

WEIGHTS = '''
"""JSON files of weights, which begin with a word of their own."""

import contextlib
import json

import numpy as np

from cnnjax.weights.formats.content import Format, Tensor, from_keys


@contextlib.contextmanager
def opened(path):
    flat = {key: np.array(value, np.float32) for key, value in json.loads(path.read_text()[6:]).items()}
    tensors = {key: Tensor(value.shape, value.dtype, lambda value=value: value) for key, value in flat.items()}
    yield from_keys("file of spots", tensors)


FORMAT = Format("JSON", lambda signature: signature.head.startswith(b"#spot\\n"), opened)
'''

SCRIPT = """
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from cnnjax import experiment, fit, models, optim, report, serving, sharding, train
from cnnjax.data import catalog, pipeline, sources, transforms

root, folder = map(Path, sys.argv[1:])
splits = catalog.load_annotated(root / "all.spots", 0.2, 0.2, objects=1)


def example(each):
    moved = transforms.squeeze(16)(each)
    return {"image": moved["image"], "brightness": np.float32(moved["image"].mean() / 255)}


splits = catalog.Splits(**{part: sources.Mapped(source, example) for part, source in vars(splits).items()})
looks = "unit", 16, 3, "squeeze", 16, "bilinear"
card = serving.Card("brightness", "spot", {"features": 4}, {}, splits.train.classes, *looks)
model = card.module(models.create)
task = card.make_task(model)
variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
plan = train.Plan(
    task=task,
    phases=(optim.Phase("all", 300, ((".*", lambda step: 0.02),)),),
    optimizer=optim.sgd(0.9),
    steps_per_epoch=100,
    augment=lambda key, batch: {**batch, "image": batch["image"].astype("float32") / 255},
)
mesh = sharding.make_mesh()
score = experiment.scorer(task, mesh, 8)
with report.Run(folder, {}, {}) as run:
    batches = partial(pipeline.train_batches, splits.train, 8, 0)
    for epoch in fit.epochs(plan, variables, batches, mesh, run, fit.Settings(8)):
        scores = score(epoch.variables, splits.valid, "valid").figures
        epoch.report(scores, best=f"valid/{task.best}")
    served = serving.Served(card, model, epoch.variables)
    experiment.finish(run, {**scores, **score(epoch.variables, splits.test, "test").figures}, served, {})
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy of the package and the scripts with one file more for each kind."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("cnnjax", "experiments"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = {
        "cnnjax/models/spot.py": ARCHITECTURE,
        "cnnjax/tasks/brightness.py": TASK,
        "cnnjax/data/formats/spots.py": ANNOTATIONS,
        "cnnjax/weights/formats/spot.py": WEIGHTS,
    }
    for name, text in files.items():
        assert not (root / name).exists()
        (root / name).write_text(text)
    return root


def python(copy, *arguments):
    """Output of Python with the copied package; it fails as the process does."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Data set in the new format: 60 gray images with a square on each."""
    root, rng, lines = tmp_path_factory.mktemp("spots"), np.random.default_rng(0), []
    for i in range(60):
        pixels = np.full((20, 24, 3), rng.integers(20, 235), np.uint8)
        pixels[4:10, 5:12] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(root / f"{i}.png")
        lines.append(f"{i}.png 5 4 12 10 {'dark' if pixels[5, 6, 0] < 128 else 'light'}\n")
    (root / "all.spots").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def run(copy, spots, tmp_path_factory):
    """Run folder of the toy task."""
    folder = tmp_path_factory.mktemp("run") / "spots"
    (copy / "train.py").write_text(SCRIPT)
    python(copy, copy / "train.py", spots, folder)
    return folder


def test_a_new_task_on_a_new_network_trains_from_a_new_format_by_the_unchanged_loop(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test/mse"] < 0.01  # of brightness 0 … 1, drawn evenly from most of it: guessing the mean gives 0.06
    assert summary["test/worst"] ** 2 >= summary["test/mse"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/mse", "train/loss"} <= lines[0].keys()


def test_the_unchanged_predict_py_uses_the_run(copy, spots, run, tmp_path):
    script, photo = copy / "experiments" / "predict.py", spots / "0.png"
    printed = python(copy, script, photo, "--run", run, "--run-dir", tmp_path)
    (entry,) = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert abs(entry["brightness"] - np.asarray(Image.open(photo)).mean() / 255) < 0.2
    assert str(entry["brightness"]) in printed
    with Image.open(tmp_path / "predictions.png") as picture:
        assert min(picture.size) > 50


def test_the_unchanged_inspect_data_py_reads_the_new_format(copy, spots, tmp_path):
    python(copy, copy / "experiments" / "inspect_data.py", spots / "all.spots", "--run-dir", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["kind"], summary["images"], summary["boxes"]) == ("spots", 60, 60)


def test_weights_in_a_new_format_are_loaded(copy, tmp_path):
    code = """
import json, sys
import jax, numpy as np
from cnnjax import models, weights
model = models.create("spot")
tree = model.init(jax.random.key(1), np.zeros((1, 16, 16, 3), np.float32))
leaves = jax.tree_util.tree_leaves_with_path(tree)
flat = {"/".join(key.key for key in path): np.asarray(x).tolist() for path, x in leaves}
open(sys.argv[1], "w").write("#spot\\n" + json.dumps(flat))
found = weights.load(sys.argv[1], model)
jax.tree.map(np.testing.assert_array_equal, tree, found)
"""
    (copy / "load.py").write_text(code)
    python(copy, copy / "load.py", tmp_path / "weights.spot")
