"""Settings that scripts share: groups of flags, each number with its range in its type.

A script's ``Config`` is a frozen dataclass whose fields are its own flags and these groups::

    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()

Flags are flat (``--threads 4``), and so are config.json and ``change(config, threads=4)``. A field annotated
with ``MAY_DIFFER`` may have another value when a run is resumed: no result depends on it; one annotated with
``LOCATES`` may, if it leads to the same data.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np

from cnnjax import fit, optim, pretrained, serving
from cnnjax.data import augment, mixing, pipeline
from cnnjax.data.sources import Source
from cnnjax.settings.fields import (
    LOCATES,
    MAY_DIFFER,
    Bytes,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Pixels,
    Positive,
    PositiveInt,
    Range,
    Share,
    Threads,
    Workers,
    change,
    check,
    defaults,
    expanded,
    flat,
    noted,
)
from cnnjax.tasks import transfer
from cnnjax.types import Batch, Key, Schedule, UserError
from cnnjax.weights import published

__all__ = [
    "LOCATES",
    "MAY_DIFFER",
    "Augmentation",
    "Base",
    "Batches",
    "Fraction",
    "Loop",
    "Mixing",
    "Network",
    "NonNegative",
    "NonNegativeInt",
    "Optimization",
    "Output",
    "Phase",
    "Pixels",
    "Positive",
    "PositiveInt",
    "Range",
    "Reading",
    "Share",
    "change",
    "check",
    "defaults",
    "expanded",
    "flat",
    "noted",
    "used",
]

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]
SMOKE = "mobilenet_v1_0.25_128.keras"  # small network for --smoke, with random weights


@dataclass(frozen=True)
class Output:
    """Folder of a run, and its small form."""

    run_dir: Annotated[Path | None, MAY_DIFFER] = None
    """Folder for results; a new one under runs/ if not given. Given again, the run goes on."""
    smoke: bool = False
    """A small network and few images, to see that everything works: the figures mean nothing."""


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
class Reading:
    """Reading of a data set."""

    data_dir: Annotated[Path | None, MAY_DIFFER] = None
    """Folder of tfds data sets; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    in_memory_bytes: Bytes = 2**31
    """Splits up to this size are decoded once, into arrays; larger ones are read as they are needed."""
    threads: Annotated[Threads, MAY_DIFFER] = 8
    """Threads that read and decode images as they are needed."""
    workers: Annotated[Workers, MAY_DIFFER] = 0
    """Processes that read and decode, each with its threads; 0: only threads."""
    skip_corrupt: bool = False
    """Leave out images that cannot be used, naming them; else they end the run before it trains. Files are checked in
    any case, only once while they do not change."""
    test_fraction: Fraction | None = None
    """Share of the images to cut off for testing where there is no test split; 0: none, the validation split is
    evaluated at the end. None: 0 where a validation split is given, else 0.15, of flowers.py 0.1, localize.py 0.2."""
    valid_fraction: Fraction | None = None
    """Share of the others to cut off for validation where there is no such split. None: 0.15."""

    def batches(self, source: Source, batch_size: int, seed: int, load: pipeline.Load | None = None) -> Batches:
        """Step → batches from there on; see ``pipeline.train_batches``."""
        read = partial(pipeline.train_batches, source, batch_size, seed, load=load)
        return partial(read, threads=self.threads, workers=self.workers)


@dataclass(frozen=True)
class Base:
    """Network that transfer learning starts from: a published one, or one that a run has trained."""

    weights: str
    """Tag of cnnjax.weights.published(): the base, its weights, and how its images are prepared. Or the folder of a
    finished run, whose network is taken without its top."""
    file: Annotated[Path | None, MAY_DIFFER] = None
    """File with these weights; None: the cache, else they are downloaded."""
    norm_momentum: Fraction | None = None
    """Momentum of BatchNorm's running statistics; None: the publisher's or, where an epoch has few steps, less."""

    @property
    def run(self) -> Path | None:
        """Folder of the run that ``weights`` names, if it does."""
        folder = Path(self.weights).expanduser()
        return folder if self.weights not in published() and (folder.is_dir() or os.sep in self.weights) else None

    @property
    def name(self) -> str:
        """Tag of the weights, or name of the run."""
        return self.run.resolve().name if self.run else self.weights

    def entry(self) -> pretrained.Entry:
        """Facts about the network.

        Raises:
          UserError: no such network, or a run with ``file``.
        """
        if self.run and self.file:
            raise UserError(f"--weights {self.weights} is a run, which has its weights: leave out --file")
        return serving.load_card(self.run) if self.run else pretrained.published(self.weights)

    def network(self, *, random: bool = False) -> pretrained.Network:
        """Network without its top; ``random`` takes fresh weights."""
        self.entry()
        if self.run:
            return serving.base(self.run)
        return pretrained.network(self.weights, self.file, random=random, num_classes=None)

    def tuned(self, network: pretrained.Network, per_epoch: int) -> pretrained.Network:
        """Copy of ``network`` with the momentum of BatchNorm for ``per_epoch`` steps in an epoch.

        Raises:
          UserError: the momentum is given, and the network has no BatchNorm.
        """
        momentum = self.norm_momentum or transfer.norm_momentum(network.model, per_epoch)
        return network._replace(model=transfer.with_norm_momentum(network.model, momentum))


@dataclass(frozen=True)
class Network:
    """Network to use: a published one, or one that a run has trained."""

    weights: str = "resnet50.keras"
    """Tag of cnnjax.weights.published(): the network, its weights, and how its images are prepared."""
    file: Annotated[Path | None, MAY_DIFFER] = None
    """File with these weights; None: the cache, else they are downloaded."""
    run: Path | None = None
    """Folder of a run of flowers.py, localize.py or classify.py; its network is used in place of --weights."""
    resize: pretrained.Resize | None = None
    """crop: as the publisher, shorter side to a size, then the center; squeeze: all of the image, its proportions
    lost, as in the chapter; square: the largest central square. None: crop; with --run as in training."""

    @property
    def title(self) -> str:
        """Name of the run, or tag of the weights."""
        return self.run.resolve().name if self.run else self.weights

    def card(self, *, random: bool = False) -> serving.Card:
        """Card of the network, which is not loaded yet.

        Args:
          random: as for ``load``.

        Raises:
          UserError: flags that contradict each other, or no such network.
        """
        if self.run and (random or self.file or self.resize):
            raise UserError("--run has a network and its way of resizing: leave out --file, --resize and --smoke")
        if self.run:
            return serving.load_card(self.run)
        return serving.published_card(pretrained.published(self.weights), self.resize or "crop")

    def load(self, *, random: bool = False) -> serving.Served:
        """Network with its card.

        Args:
          random: take fresh weights in place of the published ones.

        Raises:
          UserError: as ``card``, or weights that cannot be had.
        """
        self.card(random=random)
        if self.run:
            return serving.load(self.run)
        network = pretrained.network(self.weights, self.file, random=random)
        return serving.of_published(network, self.resize or "crop")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image, on the device."""

    flip: bool = False
    """Mirror half of the images."""
    shift: Fraction = 0.0
    """Largest shift in each direction, as a share of the image."""
    rotate: NonNegative = 0.0
    """Largest rotation, either way, in degrees."""
    zoom: Fraction = 0.0
    """Largest zoom: 0.1 zooms by 0.9 … 1.1."""
    brightness: Fraction = 0.0
    """Largest change of brightness: 0.1 multiplies pixels by 0.9 … 1.1."""
    contrast: Fraction = 0.0
    """Largest change of contrast: 0.1 multiplies the distance from the mean gray by 0.9 … 1.1."""
    cutout: NonNegativeInt = 0
    """Side of the square that is blanked, in pixels."""

    def op(self, size: int, fill: float = 0.0) -> augment.Op:
        """Random operation on one example.

        Args:
          size: height of the images in pixels.
          fill: value of the pixels that come from outside the image.
        """
        ops: list[augment.Op] = [augment.random_flip_left_right] if self.flip else []
        if self.shift or self.rotate or self.zoom:
            ops.append(
                partial(
                    augment.random_affine,
                    max_degrees=self.rotate,
                    max_change=self.zoom,
                    max_pixels=self.shift * size,
                    fill=fill,
                )
            )
        if self.brightness:
            ops.append(partial(augment.random_brightness, max_change=self.brightness))
        if self.contrast:
            ops.append(partial(augment.random_contrast, max_change=self.contrast))
        if self.cutout:
            ops.append(partial(augment.random_cutout, side=self.cutout))
        return augment.compose(*ops)


@dataclass(frozen=True)
class Mixing:
    """Mixing of pairs of training images and their labels; with mixup and cutmix on, each step draws one of them."""

    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution of the weights with which pairs of images are mixed; 0: off."""
    cutmix: NonNegative = 0.0
    """Alpha, for boxes pasted from another image; 0: off."""

    def apply(self, key: Key, batch: Batch, classes: int) -> Batch:
        """Batch with mixed ``image`` and, as distributions [n, classes], ``target``; unchanged where all is off."""
        chosen = [(f, alpha) for f, alpha in ((mixing.mixup, self.mixup), (mixing.cutmix, self.cutmix)) if alpha]
        if not chosen:
            return batch
        for_which, for_op = jax.random.split(key)
        branches = [partial(lambda f, alpha, x, y: f(for_op, x, y, alpha), f, alpha) for f, alpha in chosen]
        which = jax.random.randint(for_which, (), 0, len(branches))
        labels = jax.nn.one_hot(batch["label"], classes)
        images, target = jax.lax.switch(which, branches, batch["image"], labels)
        return {**batch, "image": images, "target": target}


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
