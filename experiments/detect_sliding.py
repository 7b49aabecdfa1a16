"""Detection of several objects by sliding a small network over a picture, and by the same as a fully convolutional one.

    python experiments/detect_sliding.py                # scanned digits on canvases: 9 min on 2 busy CPU cores
    python experiments/detect_sliding.py --smoke        # seconds

The network is LeNet-5 with the chapter's ten numbers for each window: 5 classes (the digits 0 to 4; 5 to 9 lie around,
and are none), objectness, and a box. It trains on crops. Then it looks at test canvases at several scales: window by
window, and with its dense layers as convolutions in one pass; non-maximum suppression keeps the best boxes. Expect the
same boxes both ways, 18 times faster in one pass, and an mAP@0.5 of 0.962. The times in summary.json are measured again
whenever the run is started; all else stays, bit for bit.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import cli, experiment, models, nn, plot, serving, settings, train
from cnnjax.data import canvases, catalog, crops, pipeline
from cnnjax.ops.sliding import Windows
from cnnjax.tasks import detect, slide
from cnnjax.types import Batch, Key, Picture, PyTree, Task, UserError

CLASSES = 5
MODEL = "lenet5_modern"  # it pads nothing, so that a cell of the map equals the window that it sees
SIDE = 32  # pixels that LeNet-5 sees
PICTURED = 6  # canvases


@dataclass(frozen=True)
class Config:
    """Canvases, windows, and training."""

    canvases: settings.PositiveInt = 600
    """Canvases composed of the training digits; a quarter of it for validation, and for test."""
    canvas_size: settings.Pixels = 160
    """Height and width of a canvas, in pixels."""
    scales: tuple[settings.Share, ...] = (1.0, 0.71, 0.5)
    """Factors by which a canvas is resized, for objects of several sizes; the windows have always 32 pixels."""
    objectness: settings.Fraction = 0.3
    """Objectness below which a window has no object."""
    overlap: settings.Fraction = 0.45
    """IoU above which the better box suppresses the other; in the chapter 0.6."""
    epochs: settings.PositiveInt = 16
    """Passes over the crops."""
    batch_size: settings.PositiveInt = 128
    """Crops per step, over all devices."""

    optimization: tyro.conf.OmitArgPrefixes[settings.Optimization] = settings.Optimization(learning_rate=3e-3)
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings before anything is composed, and makes ``--smoke`` small."""
    config = experiment.resolve(config, "detect-sliding")
    if not config.scales:
        raise UserError("--scales wants at least one factor, such as 1")
    smoke = {"canvases": 16, "canvas_size": 64, "scales": (1.0,), "epochs": 1, "batch_size": 16, "log_every": 1}
    return settings.change(config, **smoke) if config.output.smoke else config


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    pictures: catalog.Splits
    crops: catalog.Splits
    windows: Windows
    card: serving.Card
    model: Any
    task: Task
    plan: train.Plan
    variables: PyTree


def load_data(config: Config, windows: Windows) -> tuple[catalog.Splits, catalog.Splits]:
    """Canvases and their crops; each split has digits of its own."""
    counts = {"train": config.canvases, "valid": -(-config.canvases // 4), "test": -(-config.canvases // 4)}
    parts = catalog.digits().given
    pictures = {
        part: canvases.compose(source, CLASSES, counts[part], seed, side=config.canvas_size)
        for seed, (part, source) in enumerate(parts.items())
    }
    cut = {part: crops.cut(source, windows, seed=0) for part, source in pictures.items()}
    return catalog.Splits(**pictures), catalog.Splits(**cut)


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    card = serving.Card(
        task="slide",
        model=MODEL,
        fields={},
        head={},
        classes=tuple("0123456789"[:CLASSES]),
        preprocess="unit",
        image_size=SIDE,
        channels=1,
        fit="squeeze",
        resize=SIDE,
        resample="bilinear",
    )
    model = card.module(models.create)
    windows = Windows(SIDE, max(model.strides.values()), config.scales)
    pictures, cut = load_data(config, windows)
    shape = (SIDE, SIDE, 1)
    variables = jax.jit(model.init)(jax.random.key(config.loop.seed), np.zeros((1, *shape), np.float32))
    variables = experiment.initial(config.loop, model, variables, shape)
    per_epoch = pipeline.steps_per_epoch(len(cut.train), config.batch_size)
    task = card.make_task(model)

    def prepare(key: Key, batch: Batch) -> Batch:
        return {**batch, "image": card.prepare(batch["image"])}

    plan = config.optimization.plan(task, config.epochs, per_epoch, config.loop.seed, prepare)
    return Experiment(pictures, cut, windows, card, model, task, plan, variables)


class Way(NamedTuple):
    """Detections in the test canvases, one way."""

    found: dict[str, np.ndarray]
    """``boxes``, ``scores``, ``labels``, ``valid`` of each canvas, see ``slide.detector``."""
    milliseconds: float
    """Median time of a canvas by itself, from its pixels to its boxes."""


def look(config: Config, built: Experiment, apply: slide.Apply, variables: PyTree) -> Way:
    """Looks at each test canvas by ``apply``, with the thresholds of the config."""
    thresholds = {"objectness": config.objectness, "overlap": config.overlap}
    detector = jax.jit(slide.detector(apply, built.card.prepare, built.windows, **thresholds))
    images, found, times = built.pictures.test.fields["image"], [], []
    jax.block_until_ready(detector(variables, images[:1]))  # compiles
    for image in images:
        start = time.perf_counter()
        found.append(jax.device_get(detector(variables, image[None])))
        times.append(time.perf_counter() - start)
    return Way(jax.tree.map(lambda *x: np.concatenate(x), *found), 1e3 * float(np.median(times)))


def compare(pictures: Any, sliding: Way, fcn: Way) -> dict[str, float]:
    """Figures of the fully convolutional way on the test canvases, and of both beside each other."""
    truth = {f"true_{name}": pictures.fields[name] for name in ("boxes", "labels", "box_mask")}
    truth["true_ignore"] = np.zeros_like(truth["true_box_mask"])
    precision = detect.figures({"count": np.float64(len(pictures))}, {**fcn.found, **truth}, pictures.classes)
    same = all(np.array_equal(sliding.found[name], fcn.found[name]) for name in ("valid", "labels"))
    off = np.abs(sliding.found["boxes"] - fcn.found["boxes"])[fcn.found["valid"]]
    return {
        **{f"test/{name}": x for name, x in precision.items()},
        "test/boxes": int(fcn.found["valid"].sum()),
        "test/largest_difference_px": float(off.max(initial=0)) if same else float("inf"),
        "sliding_ms": sliding.milliseconds,
        "fcn_ms": fcn.milliseconds,
        "speedup": sliding.milliseconds / fcn.milliseconds,
    }


def picture(pictures: Any, **ways: Way) -> plot.Figure:
    """Figure of the first canvases, each with the boxes of every way and their objectness."""

    def drawn(place: int, name: str) -> Picture:
        found = {key: x[place] for key, x in ways[name].found.items()}
        each = detect.draw({"image": pictures.fields["image"][place]}, found, pictures.classes)
        true = int(pictures.fields["box_mask"][place].sum())
        return each._replace(title=f"{name}: {len(each.boxes)} boxes, {true} objects")

    places = range(min(PICTURED, len(pictures)))
    return plot.pictures([drawn(place, name) for place in places for name in ways])


def main(config: Config) -> dict[str, float]:
    """Trains, detects both ways in the test canvases, writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, config.optimization.accumulate, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    batches = partial(pipeline.train_batches, built.crops.train, config.batch_size, config.loop.seed)
    score = experiment.scorer(built.task, mesh, config.batch_size)
    with experiment.opened(config, built.crops) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, built.crops.valid, score, mesh, run, config.loop, config.batch_size
        )
        variables, test = jax.device_get(variables), built.pictures.test
        sliding = look(config, built, slide.one_by_one(built.model, built.windows), variables)
        made, converted = nn.to_fully_convolutional(built.model, variables, (SIDE, SIDE, 1))
        fcn = look(config, built, slide.in_one_pass(made), converted)
        summary = {**score(variables, built.crops.test, "test").figures, **scores, **compare(test, sliding, fcn)}
        served = serving.Served(built.card, built.model, variables)
        drawings = {
            "detections.png": lambda: picture(test, sliding=sliding, fcn=fcn),
            "crops.png": lambda: experiment.examples(served, built.crops.test),
        }
        experiment.finish(run, summary, served, drawings)
        facts = {
            "crops": f"{len(built.crops.train):,} of {len(built.pictures.train):,} canvases",
            "right crops": f"{summary['test/right']:.2%} of {len(built.crops.test):,} of test",
            "mAP@0.5": f"{summary['test/map50']:.3f}, of {len(test)} test canvases",
            "a canvas, window by window": f"{summary['sliding_ms']:.1f} ms",
            "a canvas, fully convolutional": f"{summary['fcn_ms']:.1f} ms, {summary['speedup']:.1f} times faster",
            "largest difference of a box": f"{summary['test/largest_difference_px']:.2g} pixels",
        }
        experiment.conclude(run, facts)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
