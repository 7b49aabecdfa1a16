"""Settings of training: the loop, the optimizer, the phases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import flax.linen as linen

from cnnjax import fit, optim, train
from cnnjax.settings.fields import MAY_DIFFER, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from cnnjax.tasks import transfer
from cnnjax.types import Batch, Key, Schedule, Task, UserError

Augment = Callable[[Key, Batch], Batch]
"""(key, batch) → batch; see ``train.Plan``."""


@dataclass(frozen=True)
class Loop:
    """Training loop: seed, logging, checkpoints."""

    seed: NonNegativeInt = 0
    """Seed of initial weights, order, augmentation and dropout."""
    log_every: PositiveInt = 10
    """Steps between lines of training metrics."""
    checkpoint_every: Annotated[NonNegativeInt, MAY_DIFFER] = 0
    """Steps between checkpoints within an epoch; there is always one after each epoch."""
    keep: Literal["best", "last"] = "last"
    """Weights that are tested and kept: of the epoch with the best validation figure, or of the last one."""
    continue_from: Path | None = None
    """Run that a new one goes on from, stopped or finished, with more epochs, another rate or schedule."""
    continue_with: Literal["all", "weights"] = "all"
    """all: from that run's last step, with its optimizer and metrics; weights: from step 0, with its network."""
    tune_malloc: Annotated[bool, MAY_DIFFER] = False
    """Keep freed memory in the process (glibc only): steps on CPUs are faster, memory stays at its peak."""

    def fit_settings(self, batch_size: int, patience: int = 0) -> fit.Settings:
        """Settings of ``fit.epochs``."""
        return fit.Settings(batch_size, self.log_every, self.checkpoint_every, patience=patience)


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule of a run with one phase."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum."""
    learning_rate: Positive = 1e-3
    """Learning rate at its peak."""
    schedule: Literal["cosine", "step", "inverse"] = "cosine"
    """cosine to 0; step: a tenth at 50 % and 75 %; inverse: the chapter's learning_rate / (1 + decay · step)."""
    warmup_epochs: NonNegative = 1.0
    """Epochs of linear warm-up, with cosine."""
    decay: NonNegative = 0.001
    """Decay per step, with inverse."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of kernels."""
    clip_norm: Positive | None = None
    """Global L2 norm that gradients are clipped to."""
    ema_decay: Fraction | None = None
    """Decay per step of a moving average of the weights, which is then evaluated."""
    accumulate: PositiveInt = 1
    """Parts in which a batch is computed, one after the other: less memory."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def make(self) -> optim.MakeOptimizer:
        """Function schedule → optimizer."""
        return (
            optim.adamw(self.weight_decay) if self.optimizer == "adamw" else optim.sgd(self.momentum, self.weight_decay)
        )

    def rate(self, steps: int, per_epoch: int) -> Schedule:
        """Learning rate by step, over ``steps`` steps with ``per_epoch`` in an epoch."""
        if self.schedule == "cosine":
            warmup = min(round(self.warmup_epochs * per_epoch), steps // 2)
            return optim.warmup_cosine(self.learning_rate, steps, warmup)
        if self.schedule == "step":
            return optim.step_decay(self.learning_rate, [steps // 2, steps * 3 // 4])
        return optim.inverse_time_decay(self.learning_rate, self.decay)

    def plan(self, task: Task, epochs: int, per_epoch: int, seed: int, augment: Augment) -> train.Plan:
        """Plan of ``epochs`` epochs with ``per_epoch`` steps each, in which everything trains."""
        steps = epochs * per_epoch
        return train.Plan(
            task=task,
            phases=(optim.Phase("train", steps, ((".*", self.rate(steps, per_epoch)),)),),
            optimizer=self.make(),
            steps_per_epoch=per_epoch,
            seed=seed,
            augment=augment,
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
            ema_decay=self.ema_decay,
            remat=self.remat,
        )


@dataclass(frozen=True)
class Phase:
    """Phase of training: the part of the network that trains, and its learning rate."""

    name: str
    epochs: NonNegativeInt
    """Passes over the training split; 0 leaves the phase out."""
    learning_rate: Positive | None = None
    """Learning rate of the head at the first step; None: what suits the base."""
    decay: NonNegative = 0.0
    """Decay per step, with the schedule inverse."""
    train_from: str = "all"
    """head: only the new head trains; all: everything; or the first part of the base (see the plan) that trains."""
    on_features: bool = True
    """Train the head on the base's features of the photos as they are, computed once. False: on augmented photos."""
    base_factor: Positive = 1.0
    """Learning rate of the base, as a multiple of the head's."""
    layer_decay: Positive = 1.0
    """Learning rate of each part of the base, as a multiple of that of the next part."""
    frozen_norms: bool = False
    """BatchNorm keeps the statistics of the published data, and its scales."""
    schedule: Literal["inverse", "cosine"] = "inverse"
    """inverse: learning_rate / (1 + decay · step), as in the chapter's optimizers; cosine: half a period, down to 0."""


@dataclass(frozen=True)
class FineTuning:
    """Training of new layers over a base, and of the base, by AdamW."""

    weight_decay: NonNegative
    """Weight decay of kernels, by AdamW."""
    clip_norm: Positive
    """Global L2 norm that gradients are clipped to."""

    def phases(self, chosen: Sequence[Phase]) -> tuple[Phase, ...]:
        """Phases that have epochs, each with its learning rate; UserError as ``used``."""
        return transfer.with_learning_rates(used(chosen), 1e-3, 1e-3)  # AdamW's suit every base

    def plan(
        self, task: Task, base: linen.Module, phases: Sequence[Phase], per_epoch: int, seed: int, augment: Augment
    ) -> train.Plan:
        """Plan with ``per_epoch`` steps in an epoch; ``base`` has the parameters ``base/…`` of the network."""
        return train.Plan(
            task=task,
            phases=transfer.phases(phases, transfer.stages(base), per_epoch),
            optimizer=optim.adamw(self.weight_decay),
            steps_per_epoch=per_epoch,
            seed=seed,
            augment=augment,
            clip_norm=self.clip_norm,
        )


def used(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Phases that have epochs.

    Raises:
      UserError: there is none, or two have the same name.
    """
    chosen = tuple(phase for phase in phases if phase.epochs)
    if not chosen:
        raise UserError("--phases wants at least one phase with epochs")
    if len(names := [phase.name for phase in chosen]) > len(set(names)):
        raise UserError(f"each phase wants a name of its own, got {', '.join(names)}")
    return chosen
