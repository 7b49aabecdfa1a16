"""Savings of freezing: a step over the frozen base, a step of fine-tuning, an epoch of the head on cached features.

    python experiments/transfer_cost.py --weights mobilenet_v1_0.75_224.keras        # about 2 min on 2 CPU cores

Steps are timed in turn, round by round, in one process, on the augmented images of flowers.py; a step over the frozen
base should take at most 45 % of the time of one of fine-tuning, an epoch on features only seconds.
"""

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import flowers
import jax
import tyro

from cnnjax import cli, experiment, report, settings, sharding, train
from cnnjax.data import pipeline, sources
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """Data, base and number of measurements."""

    dataset: Annotated[str, settings.LOCATES] = "tf_flowers"
    """Data set as flowers.py takes it."""
    batch_size: settings.PositiveInt = 32
    """Images per step."""
    rounds: settings.PositiveInt = 5
    """Rounds of each kind."""
    steps: settings.PositiveInt = 5
    """Steps in a round."""

    base: tyro.conf.OmitArgPrefixes[settings.Base] = settings.Base("xception.keras")
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def seconds(step, state: train.TrainState, batches: Iterable, count: int) -> tuple[train.TrainState, float]:
    """State after ``count`` steps, and the time they took."""
    started = time.perf_counter()
    for batch in itertools.islice(batches, count):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, time.perf_counter() - started


def resolve(config: Config) -> tuple[Config, flowers.Config]:
    """Checks the settings at once; also returns the run of flowers.py to time."""
    phases = (
        settings.Phase("frozen", 1, learning_rate=0.02, train_from="head"),
        settings.Phase("fine-tune", 1, learning_rate=0.004),
    )
    config = experiment.resolve(config, f"transfer-cost-{config.base.name}")
    shared = {**vars(config.base), **vars(config.reading), **vars(config.output)}
    run = flowers.Config(dataset=config.dataset, batch_size=config.batch_size, phases=phases)
    return config, flowers.resolve(settings.change(run, flip=True, **shared))


def main(config: Config) -> dict[str, float]:
    """Times all in turn, prints the medians, writes the report; returns the summary."""
    config, run_config = resolve(config)
    mesh = experiment.mesh(run_config.batch_size)
    built = flowers.build(run_config)
    features = flowers.cached_features(run_config, built, mesh)
    if not features:
        raise UserError(f"{config.dataset} is too large for its features to be kept: take another")
    with experiment.opened(config, built.splits) as run:
        summary = measure(config, run_config, built, features["train"], mesh)
        run.finish(summary)
    rows = [
        {"": "a step over the frozen base", "seconds": f"{summary['step/frozen']:.3f}"},
        {"": "a step of fine-tuning", "seconds": f"{summary['step/fine-tune']:.3f}"},
        {"": "an epoch of the head on features", "seconds": f"{summary['epoch/features']:.3f}"},
    ]
    count = f"batch {run_config.batch_size}, {len(built.splits.train):,} photos"
    report.table(f"{run_config.base.name}, {count}: ratio {summary['ratio']:.2f}", rows)
    return summary


def measure(
    config: Config,
    run_config: flowers.Config,
    built: flowers.Experiment,
    features: sources.Arrays,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Median times in seconds of the two steps and the epoch, and the ratio of the steps."""
    plan, variables = built.plan, built.variables
    put, size = partial(sharding.shard_batch, mesh=mesh), run_config.batch_size
    photos = itertools.repeat(put(next(flowers.batches(run_config, built, None)(0))))
    states = {
        phase.name: sharding.place(train.init_state(plan, variables, number * plan.phases[0].steps), mesh)
        for number, phase in enumerate(plan.phases)
    }
    steps = {phase.name: train.make_train_step(plan, phase, states[phase.name], mesh) for phase in plan.phases}
    states["features"] = sharding.place(train.init_state(plan, variables), mesh)
    on_features = train.make_train_step(plan, plan.phases[0], states["features"], mesh)
    rounds: dict[str, list[float]] = {name: [] for name in states}
    for number in range(config.rounds + 1):
        of_features = map(put, pipeline.train_batches(features, size, number))
        kinds = {
            "frozen": (steps["frozen"], photos, config.steps),
            "fine-tune": (steps["fine-tune"], photos, config.steps),
            "features": (on_features, of_features, plan.steps_per_epoch),
        }
        for name, (step, batches, count) in kinds.items():
            states[name], measured = seconds(step, states[name], batches, count)
            if number:  # the first round compiles
                rounds[name].append(measured)
    frozen, tuned, epoch = (statistics.median(rounds[name]) for name in ("frozen", "fine-tune", "features"))
    return {
        "step/frozen": frozen / config.steps,
        "step/fine-tune": tuned / config.steps,
        "ratio": frozen / tuned,
        "epoch/features": epoch,
    }


if __name__ == "__main__":
    cli.main(main, Config)
