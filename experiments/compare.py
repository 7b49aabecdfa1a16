"""Trains several architectures on one data set under one budget: accuracy, speed and size side by side.

    python experiments/compare.py                    # digits at 32×32, five networks
    python experiments/compare.py --models resnet50 mobilenet_v2 --dataset tf_flowers --image-size 96
    python experiments/compare.py --smoke

Each network sees the same batches, augmentation and schedule (``classify.py``'s for the data set) from random weights;
its run has a folder of its own in ``--run-dir``, so that a comparison that was stopped can be resumed. Images/s are
those of the training step on a fixed batch, the median of several rounds.
"""

import itertools
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import classify
import jax
import numpy as np
import tyro
from input_rate import rate

from cnnjax import cli, experiment, models, plot, report, settings, sharding, train
from cnnjax.data import pipeline
from cnnjax.tasks import classify as classify_task
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """Networks, data and budget."""

    models: Annotated[tuple[str, ...], settings.MAY_DIFFER] = (
        "lenet5_modern",
        "digits_cnn",
        "resnet18",
        "seresnet50",
        "mobilenet_v2",
    )
    """Names of cnnjax.models.names()."""
    dataset: Annotated[str, settings.LOCATES] = "digits"
    """Data set as classify.py takes it."""
    image_size: settings.Pixels = 32
    """Height and width in pixels: the shorter side is resized to it, then the center is cut out."""
    epochs: settings.PositiveInt = 20
    """Passes over the training split, for each network."""
    batch_size: settings.PositiveInt = 64
    """Images per step."""
    learning_rate: settings.Positive = 1e-3
    """Learning rate at its peak, of AdamW with a cosine schedule."""
    seeds: Annotated[settings.PositiveInt, settings.MAY_DIFFER] = 1
    """Runs of each network, with seeds 0, 1, …; more than one gives a standard deviation."""
    rounds: Annotated[settings.PositiveInt, settings.MAY_DIFFER] = 5
    """Rounds of timing."""
    steps: Annotated[settings.PositiveInt, settings.MAY_DIFFER] = 5
    """Steps in a round."""

    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small.

    Raises:
      UserError: an unknown or missing model, a number that is not above 0.
    """
    config = experiment.resolve(config, "compare")
    if config.output.smoke:
        config = settings.change(config, models=("lenet5_modern", "digits_cnn"), seeds=1, rounds=1, steps=1)
    if not config.models or len(set(config.models)) < len(config.models):
        raise UserError(f"--models takes different names, got {' '.join(config.models) or 'none'}")
    for name in config.models:
        models.create(name)
    return config


def check_images(config: Config) -> None:
    """Raises UserError before training if the data set cannot be read or a network does not take its images."""
    splits = classify.load_data(run_config(config, config.models[0], 0))
    if splits.test is None:
        raise UserError(f"{config.dataset} has no test split to compare on: add it, or give a --test-fraction")
    images = classify_task.unit(splits.train[0]["image"][None])
    for name in config.models:
        model = models.create(name, num_classes=len(splits.train.classes))
        try:
            jax.eval_shape(model.init, jax.random.key(0), images)
        except ValueError as error:
            raise UserError(f"{name} cannot take the images of {config.dataset}: {error}") from error


def run_config(config: Config, model: str, seed: int) -> classify.Config:
    """Config of the run of one network."""
    names = ("image_size", "epochs", "batch_size", "learning_rate")
    shared = {**{name: getattr(config, name) for name in names}, **vars(config.reading), **vars(config.output)}
    shared["run_dir"] = config.output.run_dir / f"{model}-seed{seed}"
    # The moving average of weights that some recipes have is left out: it takes more steps to warm up than a small
    # budget has, most for deep networks with BatchNorm.
    recipe = classify.recipe(config.dataset)
    return classify.resolve(settings.change(recipe, model=model, seed=seed, ema_decay=None, **shared))


def images_per_second(config: Config, model: str) -> tuple[float, int]:
    """Images per second of training on one batch on the device, and the number of the network's parameters."""
    chosen = run_config(config, model, 0)
    mesh = experiment.mesh(chosen.batch_size)
    built = classify.build(chosen)
    plan = built.plan
    state = sharding.place(train.init_state(plan, built.variables), mesh)
    step = train.make_train_step(plan, plan.phases[0], state, mesh)
    batches = pipeline.train_batches(built.splits.train, chosen.batch_size, 0)
    fixed = itertools.repeat(sharding.shard_batch(next(batches), mesh))
    measure = partial(rate, step, batches=fixed, count=config.steps)
    state, _ = measure(state)  # compiles
    rates = []
    for _ in range(config.rounds):
        state, measured = measure(state)
        rates.append(measured)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(built.variables["params"]))
    return statistics.median(rates) * chosen.batch_size, parameters


def compare(config: Config, model: str) -> dict[str, float]:
    """Trains one network, once for each seed, and times it."""
    scores = [classify.main(run_config(config, model, seed))["test/accuracy"] for seed in range(config.seeds)]
    speed, parameters = images_per_second(config, model)
    deviation = {"test/accuracy_std": float(np.std(scores, ddof=1))} if config.seeds > 1 else {}
    return {
        "test/accuracy": float(np.mean(scores)),
        **deviation,
        "images_per_second": speed,
        "parameters": parameters,
    }


def row(model: str, figures: dict[str, float]) -> dict[str, str]:
    """Line of the table."""
    deviation = figures.get("test/accuracy_std")
    return {
        "model": model,
        "test accuracy": f"{figures['test/accuracy']:.2%}" + ("" if deviation is None else f" ± {deviation:.2%}"),
        "images/s": f"{figures['images_per_second']:.4g}",
        "parameters": f"{figures['parameters']:,}",
    }


def main(config: Config) -> dict[str, Any]:
    """Trains and times all, prints the table, writes the report; returns the summary."""
    config = resolve(config)
    check_images(config)
    results: dict[str, dict[str, float]] = {}
    with experiment.opened(config, {}) as run:
        run.start(0)
        for number, model in enumerate(config.models, 1):
            results[model] = compare(config, model)
            run.log(number, {"test/accuracy": results[model]["test/accuracy"]}, model=model)
        summary = {f"{model}/{name}": value for model, result in results.items() for name, value in result.items()}
        points = {
            model: (result["images_per_second"], 100 * result["test/accuracy"], result["parameters"])
            for model, result in results.items()
        }
        run.finish(summary)
        labels = "images/s in training", f"test accuracy on {config.dataset}, %"
        experiment.draw(run, {"comparison.png": lambda: plot.bubbles(points, *labels)})
    report.table(
        f"{config.dataset} at {config.image_size} pixels, {config.epochs} epochs",
        [row(model, result) for model, result in results.items()],
    )
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
