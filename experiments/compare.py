"""Trains several architectures on one data set under one budget: accuracy, speed and size side by side.

    python experiments/compare.py                    # digits at 32×32, five networks
    python experiments/compare.py --models resnet50 mobilenet_v2 --dataset tf_flowers --image-size 96
    python experiments/compare.py --smoke

Each network sees the same batches, augmentation and schedule (``classify.py``'s for the data set) from random weights;
its run lies in a folder of its own in ``--run-dir``, so that a comparison that was stopped goes on. Images/s are those
of the training step on a fixed batch, the median of several rounds.
"""

import itertools
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import classify
import jax
import numpy as np
import tyro
from input_rate import rate

from cnnjax import models, plot, report, sharding, train
from cnnjax.data import host, pipeline
from cnnjax.tasks import classify as classify_task
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """What to compare."""

    models: tuple[str, ...] = ("lenet5_modern", "digits_cnn", "resnet18", "seresnet50", "mobilenet_v2")
    """Names of cnnjax.models.names()."""
    dataset: str = "digits"
    """As in classify.py."""
    data_dir: Path | None = None
    """Where tfds data sets lie."""
    image_size: int = 32
    """Pixels: the shorter side is brought to it, then the central square is cut."""
    epochs: int = 20
    """Passes over the training split, for each network."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 1e-3
    """At its peak, of AdamW with a cosine schedule."""
    seeds: int = 1
    """Runs of each network, with seeds 0, 1, …; more than one gives a standard deviation."""
    rounds: int = 5
    """Of timing."""
    steps: int = 5
    """In a round."""
    run_dir: Path = Path("runs/compare")
    """Where the runs and the comparison go. Given again, unfinished runs go on and finished ones are kept."""
    smoke: bool = False
    """Two small networks, a few steps each."""


def resolve(config: Config) -> Config:
    """Checks what can be checked at once, and makes ``--smoke`` small.

    Raises:
      UserError: an unknown or missing model, a number that is not above 0.
    """
    numbers = ("image_size", "epochs", "batch_size", "learning_rate", "seeds", "rounds", "steps")
    report.check_ranges(config, above_zero=numbers)
    if config.smoke:
        config = replace(config, models=("lenet5_modern", "digits_cnn"), seeds=1, rounds=1, steps=1)
    if not config.models or len(set(config.models)) < len(config.models):
        raise UserError(f"--models takes different names, got {' '.join(config.models) or 'none'}")
    for name in config.models:
        models.create(name)
    return config


def check_images(config: Config) -> None:
    """UserError, before anything is trained, if the data set cannot be read or a network does not take its images."""
    splits = classify.load_data(classify.resolve(settings(config, config.models[0], 0)))
    image = splits.train[0]["image"]
    transform = host.center_crop(config.image_size)
    images = classify_task.unit(transform(image)[None])
    for name in config.models:
        model = models.create(name, num_classes=len(splits.train.classes))
        try:
            jax.eval_shape(model.init, jax.random.key(0), images)
        except ValueError as error:
            raise UserError(f"{name} cannot take the images of {config.dataset}: {error}") from error


# What may differ when a comparison goes on; each run below refuses a setting that is not its own.
FREE = ("models", "seeds", "rounds", "steps", "run_dir", "data_dir")


def settings(config: Config, model: str, seed: int) -> classify.Config:
    """The run of one network."""
    names = ("dataset", "data_dir", "image_size", "epochs", "batch_size", "learning_rate", "smoke")
    shared = {name: getattr(config, name) for name in names}
    folder = config.run_dir / f"{model}-seed{seed}"
    # Without the moving average of weights that some recipes have: it takes more steps than a small budget has to warm
    # up, longest for deep networks with BatchNorm.
    return classify.Config(model=model, seed=seed, run_dir=folder, ema_decay=0.0, **shared)


def images_per_second(config: Config, model: str) -> tuple[float, int]:
    """Of training on one batch that lies on the device, and the network's parameters."""
    chosen = classify.resolve(settings(config, model, 0))
    mesh = sharding.make_mesh()
    experiment = classify.build(chosen)
    plan = experiment.plan
    step = train.make_train_step(plan, plan.phases[0], experiment.variables["params"], mesh)
    state = sharding.replicate(train.init_state(plan, experiment.variables), mesh)
    batches = pipeline.train_batches(
        experiment.splits.train, chosen.batch_size, 0, transform=classify.host_transform(chosen)
    )
    fixed = itertools.repeat(sharding.shard_batch(next(batches), mesh))
    measure = partial(rate, step, batches=fixed, count=config.steps)
    state, _ = measure(state)  # compiles
    rates = []
    for _ in range(config.rounds):
        state, measured = measure(state)
        rates.append(measured)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.variables["params"]))
    return statistics.median(rates) * chosen.batch_size, parameters


def compare(config: Config, model: str) -> dict[str, float]:
    """Trains one network, once for each seed, and times it."""
    scores = [classify.main(settings(config, model, seed))["test/accuracy"] for seed in range(config.seeds)]
    speed, parameters = images_per_second(config, model)
    spread = {"test/accuracy_std": float(np.std(scores, ddof=1))} if config.seeds > 1 else {}
    return {
        "test/accuracy": float(np.mean(scores)),
        **spread,
        "images_per_second": speed,
        "parameters": parameters,
    }


def row(model: str, figures: dict[str, float]) -> dict[str, str]:
    """A line of the table."""
    spread = figures.get("test/accuracy_std")
    return {
        "model": model,
        "test accuracy": f"{figures['test/accuracy']:.2%}" + ("" if spread is None else f" ± {spread:.2%}"),
        "images/s": f"{figures['images_per_second']:.4g}",
        "parameters": f"{figures['parameters']:,}",
    }


def main(config: Config) -> dict[str, Any]:
    """Trains and times all, prints the table, writes the report; returns the summary."""
    config = resolve(config)
    check_images(config)
    results: dict[str, dict[str, float]] = {}
    with report.Run(config.run_dir, config, {}, FREE) as run:
        run.start(0)
        for number, model in enumerate(config.models, 1):
            results[model] = compare(config, model)
            run.log(number, {"test/accuracy": results[model]["test/accuracy"]}, model=model)
        summary = {f"{model}/{name}": value for model, result in results.items() for name, value in result.items()}
        points = {
            model: (result["images_per_second"], 100 * result["test/accuracy"], result["parameters"])
            for model, result in results.items()
        }
        figure = plot.bubbles(points, "images/s in training", f"test accuracy on {config.dataset}, %")
        plot.save(figure, run.dir / "comparison.png")
        run.finish(summary)
    report.table(
        f"{config.dataset} at {config.image_size} pixels, {config.epochs} epochs",
        [row(model, result) for model, result in results.items()],
    )
    return summary


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
