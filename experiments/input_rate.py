"""Does the input slow training down? Step rate with the pipeline over the rate on one fixed batch on the device.

    python experiments/input_rate.py --dataset fashion_mnist --data-dir PATH      # about 2 min on 2 CPU cores

Both are timed in turn, round by round, in one process; the ratio of the medians should be at least 0.95.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import classify
import jax
import tyro

from cnnjax import report, sharding, train
from cnnjax.data import pipeline


@dataclass(frozen=True)
class Config:
    """What to time."""

    dataset: str = "digits"
    """As in classify.py."""
    data_dir: Path | None = None
    """Where tfds data sets lie."""
    model: str | None = None
    """None: as in classify.py."""
    batch_size: int | None = None
    """Images per step; None: as in classify.py."""
    streamed: bool = False
    """Read, decode and prefetch every image again each time, as for sets that do not fit in memory."""
    threads: int = 8
    """With streamed: that read images."""
    workers: int = 0
    """With streamed: processes that do so."""
    rounds: int = 7
    """Of each kind."""
    steps: int = 20
    """In a round."""


def rate(step, state: train.TrainState, batches: Iterable, count: int) -> tuple[train.TrainState, float]:
    """Steps per second over ``count`` steps."""
    started = time.perf_counter()
    for batch in itertools.islice(batches, count):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, count / (time.perf_counter() - started)


def main(config: Config) -> dict[str, float]:
    """Times both in turn and prints the medians; returns them."""
    names = ("dataset", "data_dir", "model", "batch_size")
    settings = classify.Config(run_dir=Path("unused"), **{name: getattr(config, name) for name in names})
    settings = classify.resolve(settings)
    mesh = sharding.make_mesh()
    sharding.check_batch(settings.batch_size, mesh)
    if config.streamed:
        settings = dataclasses.replace(settings, in_memory_bytes=0)
    experiment = classify.build(settings)
    plan, source = experiment.plan, experiment.splits.train
    step = train.make_train_step(plan, plan.phases[0], experiment.variables["params"], mesh)
    state = sharding.replicate(train.init_state(plan, experiment.variables), mesh)
    put = partial(sharding.shard_batch, mesh=mesh)
    transform = classify.host_transform(settings)
    reading = {"transform": transform, "threads": config.threads, "workers": config.workers}
    stream = map(put, pipeline.train_batches(source, settings.batch_size, 0, **reading))
    fixed = itertools.repeat(next(stream))
    kinds = {"pipeline": stream, "fixed batch": fixed}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(config.rounds + 1):
        for kind, batches in kinds.items():
            state, measured = rate(step, state, batches, config.steps)
            if number:  # the first round compiles
                rates[kind].append(measured)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    ratio = medians["pipeline"] / medians["fixed batch"]
    rows = [
        {"input": kind, "steps/s": medians[kind], "images/s": medians[kind] * settings.batch_size} for kind in kinds
    ]
    report.table(f"{settings.model} on {config.dataset}, batch {settings.batch_size}: ratio {ratio:.3f}", rows)
    return {**medians, "ratio": ratio}


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
