"""What freezing saves: a step over the frozen base, a step of fine-tuning, an epoch of the head on cached features.

    python experiments/transfer_cost.py --weights mobilenet_v1_0.75_224.keras        # about 2 min on 2 CPU cores

Steps are timed in turn, round by round, in one process, on the augmented photos of flowers.py; a step over the frozen
base should cost at most 45 % of one of fine-tuning, an epoch on features seconds.
"""

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flowers
import jax
import tyro

from cnnjax import report, sharding, train
from cnnjax.data import pipeline
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """What to time."""

    dataset: str = "tf_flowers"
    """As in flowers.py."""
    data_dir: Path | None = None
    """Where tfds data sets lie."""
    weights: str = "xception.keras"
    """As in flowers.py."""
    file: Path | None = None
    """As in flowers.py."""
    batch_size: int = 32
    """Photos per step."""
    rounds: int = 5
    """Of each kind."""
    steps: int = 5
    """In a round."""
    smoke: bool = False
    """A small network with random weights and few photos, to see that everything works."""


def seconds(step, state: train.TrainState, batches: Iterable, count: int) -> tuple[train.TrainState, float]:
    """The state and the time after ``count`` steps."""
    started = time.perf_counter()
    for batch in itertools.islice(batches, count):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, time.perf_counter() - started


def main(config: Config) -> dict[str, float]:
    """Times all in turn and prints the medians; returns them."""
    report.check_ranges(config, above_zero=("batch_size", "rounds", "steps"))
    names = ("dataset", "data_dir", "weights", "file", "batch_size", "smoke")
    phases = (flowers.Phase("frozen", 1, 0.02, 0.0, "head"), flowers.Phase("fine-tune", 1, 0.004, 0.0))
    settings = {name: getattr(config, name) for name in names}
    settings = flowers.Config(**settings, phases=phases, flip=True, run_dir=Path("unused"))
    settings = flowers.resolve(settings)
    mesh = sharding.make_mesh()
    sharding.check_batch(settings.batch_size, mesh)
    experiment = flowers.build(settings)
    features = flowers.cached_features(settings, experiment, mesh)
    if features is None:
        raise UserError(f"{config.dataset} is too large for its features to be kept: take another")
    plan, variables = experiment.plan, experiment.variables
    put = partial(sharding.shard_batch, mesh=mesh)
    size, photos = settings.batch_size, itertools.repeat(put(next(flowers.photo_batches(settings, experiment, 0))))
    steps = {phase.name: train.make_train_step(plan, phase, variables["params"], mesh) for phase in plan.phases}
    states = {
        phase.name: sharding.replicate(train.init_state(plan, variables, number * plan.phases[0].steps), mesh)
        for number, phase in enumerate(plan.phases)
    }
    states["features"] = sharding.replicate(train.init_state(plan, variables), mesh)
    rounds: dict[str, list[float]] = {name: [] for name in states}
    for number in range(config.rounds + 1):
        of_features = map(put, pipeline.array_batches(features.train, size, number))
        tasks = {
            "frozen": (steps["frozen"], photos, config.steps),
            "fine-tune": (steps["fine-tune"], photos, config.steps),
            "features": (steps["frozen"], of_features, plan.steps_per_epoch),
        }
        for name, (step, batches, count) in tasks.items():
            states[name], measured = seconds(step, states[name], batches, count)
            if number:  # the first round compiles
                rounds[name].append(measured)
    frozen, tuned, epoch = (statistics.median(rounds[name]) for name in ("frozen", "fine-tune", "features"))
    summary = {
        "step/frozen": frozen / config.steps,
        "step/fine-tune": tuned / config.steps,
        "ratio": frozen / tuned,
        "epoch/features": epoch,
    }
    rows = [
        {"": "a step over the frozen base", "seconds": f"{summary['step/frozen']:.3f}"},
        {"": "a step of fine-tuning", "seconds": f"{summary['step/fine-tune']:.3f}"},
        {"": "an epoch of the head on features", "seconds": f"{epoch:.3f}"},
    ]
    title = f"{settings.weights}, batch {size}, {len(experiment.splits.train):,} photos: ratio {summary['ratio']:.2f}"
    report.table(title, rows)
    return summary


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
