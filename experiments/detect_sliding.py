"""Detection of several objects by sliding a small network over a picture, and by the same as a fully convolutional one.

    python experiments/detect_sliding.py                # scanned digits on canvases: about TIME min on 2 CPU cores
    python experiments/detect_sliding.py --smoke        # seconds

The network is LeNet-5 with the chapter's ten numbers for each window: 5 classes (the digits 0 to 4; 5 to 9 lie around,
and are none), objectness, and a box. It trains on crops. Then it looks at test canvases at several scales: window by
window, and with its dense layers as convolutions in one pass; non-maximum suppression keeps the best boxes. Expect the
same boxes both ways, TIMES times faster in one pass, and an mAP@0.5 of MAP. ``speedup`` in summary.json is measured
again whenever the run is started; all else stays, bit for bit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import cli, experiment, fit, models, nn, optim, plot, serving, settings, train
from cnnjax.data import canvases, catalog, crops, pipeline
from cnnjax.metrics import detection
from cnnjax.ops.sliding import Windows
from cnnjax.tasks import slide
from cnnjax.types import Array, Picture, PyTree, Task

CLASSES = 5
MODEL = "lenet5_modern"  # it pads nothing, so that a cell of the map equals the window that it sees
SIDE = 32  # pixels that LeNet-5 sees
TIMED, PICTURED = 20, 6  # canvases


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
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings before anything is composed, and makes ``--smoke`` small."""
    config = experiment.resolve(config, "detect-sliding")
    smoke = {"canvases": 16, "canvas_size": 64, "scales": (1.0, 0.5), "epochs": 1, "batch_size": 16, "log_every": 1}
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
    steps, options = config.epochs * per_epoch, config.optimization
    task = card.make_task(model)
    plan = train.Plan(
        task=task,
        phases=(optim.Phase("train", steps, ((".*", options.rate(steps, per_epoch)),)),),
        optimizer=options.make(),
        steps_per_epoch=per_epoch,
        seed=config.loop.seed,
        augment=lambda key, batch: {**batch, "image": card.prepare(batch["image"])},
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        remat=options.remat,
    )
    return Experiment(pictures, cut, windows, card, model, task, plan, variables)


Detect = Callable[[Array], dict[str, np.ndarray]]
"""uint8 images [n, h, w, c] → detections on the host, see ``slide.detector``."""


def detectors(config: Config, built: Experiment, variables: PyTree) -> dict[str, Detect]:
    """The two ways: ``sliding``, window by window, and ``fcn``, in one pass."""
    made, converted = nn.to_fully_convolutional(built.model, variables, (SIDE, SIDE, 1))
    ways = {
        "sliding": (slide.one_by_one(built.model, built.windows), variables),
        "fcn": (slide.in_one_pass(made), converted),
    }
    thresholds = {"objectness": config.objectness, "overlap": config.overlap}
    found = {}
    for name, (apply, weights) in ways.items():
        detect = jax.jit(slide.detector(apply, built.card.prepare, built.windows, **thresholds))
        found[name] = lambda images, detect=detect, weights=weights: jax.device_get(detect(weights, images))
    return found


def predictions(found: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Detections of each picture, as ``metrics.detection`` takes them."""
    names = ("boxes", "labels", "scores")
    return [{name: found[name][i][valid] for name in names} for i, valid in enumerate(found["valid"])]


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest distance between a box of one way and the same box of the other, in pixels; infinite where one lacks."""
    if not np.array_equal(one["valid"], other["valid"]):
        return float("inf")
    return float(np.abs(one["boxes"] - other["boxes"])[one["valid"]].max(initial=0))


def seconds(detect: Detect, images: Array) -> float:
    """Median time of a picture, alone."""
    times = []
    for image in images[:TIMED]:
        start = time.perf_counter()
        detect(image[None])
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:] or times))  # the first is compiled


def evaluate(ways: dict[str, Detect], pictures: Any, split: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of a split of canvases, and the detections of each way."""
    images, batch = pictures.fields["image"], 8
    found = {}
    for name, detect in ways.items():
        parts = [detect(images[i : i + batch]) for i in range(0, len(images), batch)]
        found[name] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    truths = [
        {"boxes": pictures.fields["boxes"][i][mask], "labels": pictures.fields["labels"][i][mask]}
        for i, mask in enumerate(pictures.fields["box_mask"])
    ]
    precision = {
        name: float(np.mean(list(detection.voc_ap(truths, predictions(each)).values()))) for name, each in found.items()
    }
    times = {name: seconds(detect, images) for name, detect in ways.items()}
    return {
        f"{split}/map": precision["fcn"],
        f"{split}/map_sliding": precision["sliding"],
        f"{split}/boxes": int(found["fcn"]["valid"].sum()),
        f"{split}/largest_difference_px": difference(*found.values()),
        **{f"{name}_ms": 1e3 * each for name, each in times.items()},
        "speedup": times["sliding"] / times["fcn"],
    }, found


def picture(pictures: Any, found: dict[str, dict[str, np.ndarray]]) -> plot.Figure:
    """Figure of the first canvases, each with the boxes of either way and their objectness."""

    def drawn(place: int, name: str) -> Picture:
        each = predictions(found[name])[place]
        names = [f"{pictures.classes[k]} {s:.0%}" for k, s in zip(each["labels"], each["scores"], strict=True)]
        title = f"{name}: {len(names)} boxes of {pictures.fields['box_mask'][place].sum()} objects"
        colors = tuple((1 + each["labels"]).tolist())
        return Picture(pictures.fields["image"][place], title, each["boxes"], tuple(names), colors)

    places = range(min(PICTURED, len(pictures)))
    return plot.pictures([drawn(place, name) for place in places for name in found], columns=4)


def main(config: Config) -> dict[str, float]:
    """Trains, detects both ways in the test canvases, writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, config.optimization.accumulate, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    batches = config.reading.batches(built.crops.train, config.batch_size, config.loop.seed)
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.crops) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        options = config.loop.fit_settings(config.batch_size)
        for epoch in fit.epochs(built.plan, built.variables, batches, mesh, run, options):
            scores = score(epoch.variables, built.crops.valid, "valid").figures
            epoch.report(scores, best=f"valid/{built.task.best}")
        variables, scores = experiment.kept(config.loop.keep, built.plan, built.variables, mesh, run, epoch)
        figures, found = evaluate(detectors(config, built, jax.device_get(variables)), built.pictures.test, "test")
        summary = {**score(variables, built.crops.test, "test").figures, **scores, **figures}
        served = serving.Served(built.card, built.model, variables)
        drawings = {
            "detections.png": lambda: picture(built.pictures.test, found),
            "crops.png": lambda: experiment.examples(served, built.crops.test),
        }
        experiment.finish(run, summary, served, drawings)
        facts = {
            "crops": f"{len(built.crops.train):,} of {len(built.pictures.train):,} canvases",
            "right crops": f"{summary['test/right']:.2%} of {len(built.crops.test):,} of test",
            "mAP@0.5": f"{summary['test/map']:.3f}, of {len(built.pictures.test)} test canvases",
            "a canvas, window by window": f"{summary['sliding_ms']:.1f} ms",
            "a canvas, fully convolutional": f"{summary['fcn_ms']:.1f} ms, {summary['speedup']:.1f} times faster",
            "largest difference of a box": f"{summary['test/largest_difference_px']:.2g} pixels",
        }
        experiment.conclude(run, facts)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
