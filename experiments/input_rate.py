"""Slowdown of training by its input: steps per second with the pipeline, and on one fixed batch on the device.

    python experiments/input_rate.py --dataset fashion_mnist --data-dir PATH      # about 2 min on 2 CPU cores

The two are timed in turn, round by round, in one process; the ratio of the medians should be at least 0.95.
"""

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import classify
import jax
import tyro

from cnnjax import cli, experiment, report, settings, sharding, train


@dataclass(frozen=True)
class Config:
    """Data, model and number of measurements."""

    dataset: Annotated[str, settings.LOCATES] = "digits"
    """Data set as classify.py takes it."""
    model: str | None = None
    """Name of cnnjax.models.names(); None: as in classify.py."""
    batch_size: settings.PositiveInt | None = None
    """Images per step; None: as in classify.py."""
    image_size: settings.Pixels | None = None
    """Height and width in pixels, see classify.py; None: as in classify.py."""
    streamed: bool = False
    """Read, decode and prefetch every image again each time, as for data sets that do not fit in memory."""
    rounds: settings.PositiveInt = 7
    """Rounds of each kind."""
    steps: settings.PositiveInt = 20
    """Steps in a round."""

    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def rate(step, state: train.TrainState, batches: Iterable, count: int) -> tuple[train.TrainState, float]:
    """Steps per second over ``count`` steps."""
    started = time.perf_counter()
    for batch in itertools.islice(batches, count):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, count / (time.perf_counter() - started)


def resolve(config: Config) -> tuple[Config, classify.Config]:
    """Checks the settings at once, and makes ``--smoke`` small; also returns the run of classify.py to time."""
    if config.output.smoke:
        config = settings.change(config, rounds=1, steps=2)
    config = experiment.resolve(config, f"input-{config.dataset.rpartition('/')[2]}")
    names = ("model", "batch_size", "image_size")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    reading = {**vars(config.reading), **({"in_memory_bytes": 0} if config.streamed else {})}
    run = settings.change(classify.recipe(config.dataset), **given, **reading, **vars(config.output))
    return config, classify.resolve(run)


def main(config: Config) -> dict[str, float]:
    """Times the two in turn, prints the medians, writes the report; returns the summary."""
    config, run_config = resolve(config)
    mesh = experiment.mesh(run_config.batch_size)
    built = classify.build(run_config)
    plan, source, size = built.plan, built.splits.train, run_config.batch_size
    state = sharding.place(train.init_state(plan, built.variables), mesh)
    step = train.make_train_step(plan, plan.phases[0], state, mesh)
    batches = config.reading.batches(source, size, 0)
    stream = map(partial(sharding.shard_batch, mesh=mesh), batches(0))
    kinds = {"pipeline": stream, "fixed": itertools.repeat(next(stream))}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with experiment.opened(config, built.splits) as run:
        for number in range(config.rounds + 1):
            for kind, batches in kinds.items():
                state, measured = rate(step, state, batches, config.steps)
                if number:  # the first round compiles
                    rates[kind].append(measured)
        medians = {kind: statistics.median(values) for kind, values in rates.items()}
        summary = {f"steps_per_second/{kind}": value for kind, value in medians.items()}
        summary["ratio"] = medians["pipeline"] / medians["fixed"]
        run.finish(summary)
    rows = [{"input": kind, "steps/s": x, "images/s": x * size} for kind, x in medians.items()]
    report.table(f"{run_config.model} on {config.dataset}, batch {size}: ratio {summary['ratio']:.3f}", rows)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
