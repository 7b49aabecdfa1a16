"""Transfer learning, the chapter's way: a published network under a new head learns to tell flowers apart.

    python experiments/flowers.py                                              # Xception: downloads 92 MB once
    python experiments/flowers.py --weights mobilenet_v1_0.75_224.keras --phases.0.rate 0.02 --phases.1.epochs 0
    python experiments/flowers.py --dataset path/to/folder                     # one sub-folder of photos per class
    python experiments/flowers.py --smoke                                      # random weights, nothing is downloaded

First only the new head trains, on features of the frozen base that are computed once and kept in the cache; then all of
the network, at a lower rate. The plan is printed, and drawn in plan.png, before anything trains. The test split is
looked at once, at the end. The second command takes 16 s on 2 CPU cores; those with their figures are in the README.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import fit, optim, plot, report, sharding, train
from cnnjax.data import augment, box_host, catalog, pipeline, sources
from cnnjax.metrics import classification
from cnnjax.tasks import classify, predict, serve, transfer
from cnnjax.types import Batch, Key, PyTree, UserError
from cnnjax.weights import checksum, preprocess


@dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    name: str
    epochs: int
    """0 leaves the phase out."""
    rate: float
    """Learning rate of the head at the first step."""
    decay: float = 0.0
    """Per step, with the schedule inverse."""
    train_from: str = "all"
    """head: only the new head trains; all; or the part of the base (printed with the plan) from which on it trains."""
    on_features: bool = True
    """With head: train on the base's features of the photos as they are, computed once. False: on augmented photos."""
    base_factor: float = 1.0
    """The base's rate is this times the head's."""
    layer_decay: float = 1.0
    """The rate of each part of the base is this times that of the part behind it."""
    frozen_norms: bool = False
    """BatchNorm keeps the statistics of the published data, and its scales."""
    schedule: Literal["inverse", "cosine"] = "inverse"
    """inverse: rate / (1 + decay · step), as the chapter's optimizers have it; cosine: half of one, down to 0."""


@dataclass(frozen=True)
class Config:
    """What to train on what."""

    dataset: str = "tf_flowers"
    """A tfds name, or a folder with one sub-folder per class."""
    data_dir: Path | None = None
    """Where tfds data sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    test_fraction: float = 0.10
    """Of a folder's photos, drawn from each class; tf_flowers is cut as in the chapter: 10 % test, 15 % validation."""
    valid_fraction: float = 0.15
    """As test_fraction."""
    weights: str = "xception.keras"
    """A tag of cnnjax.weights.published(): the base, its weights, and how its images are prepared."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""
    resize: predict.Resize = "squeeze"
    """squeeze: all of the photo, its proportions lost, as in the chapter; crop: as the publisher; square: the largest
    central square."""

    phases: tuple[Phase, ...] = (
        Phase("frozen", 5, rate=0.2, decay=0.01, train_from="head"),
        Phase("fine-tune", 40, rate=0.01, decay=0.001),
    )
    """The chapter's."""
    batch_size: int = 32
    """Photos per step, over all devices."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0
    """On kernels."""
    dropout: float = 0.0
    """Before the head's dense layer."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, 0 … 1."""
    class_weights: bool = False
    """Weigh each class by the inverse of its share of the training photos."""
    norm_momentum: float | None = None
    """Of BatchNorm's running statistics; None: the publisher's. At 0.99 they lag behind a short fine-tuning."""
    ema_decay: float | None = None
    """Per step; evaluates a moving average of the weights."""
    patience: int = 0
    """End the last phase after so many epochs without a better validation accuracy, and go back to the best one; 0:
    never."""

    random_crop: float = 1.0
    """Smallest share of a photo's area that a random crop keeps; 1: no random crops, all of the photo."""
    flip: bool = False
    """Mirror half of the photos."""
    brightness: float = 0.0
    """At most, as a fraction."""
    contrast: float = 0.0
    """At most, as a fraction."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that pairs of photos are mixed with; 0: off."""
    cutmix: float = 0.0
    """Alpha, for boxes pasted from another photo; 0: off. Where both are on, each step draws one."""

    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given. Given again, the run goes on."""
    seed: int = 0
    """Of the head's initial weights, order, augmentation and dropout."""
    log_every: int = 10
    """Steps between lines of training metrics."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; there is always one after each epoch."""
    in_memory_bytes: int = 2**31
    """Splits up to this size are decoded once, into arrays; only of these features are kept."""
    threads: int = 8
    """That read photos."""
    smoke: bool = False
    """A small network with random weights and few photos, to see that everything works."""


RANGES = {
    "above_zero": ("batch_size", "log_every", "random_crop"),
    "from_zero": (
        *("weight_decay", "patience", "mixup", "cutmix", "seed", "checkpoint_every", "in_memory_bytes", "threads"),
    ),
    "below_one": (
        *("momentum", "dropout", "label_smoothing", "ema_decay", "norm_momentum", "brightness", "contrast"),
        *("test_fraction", "valid_fraction"),
    ),
}
# What may differ when a run is resumed.
FREE = ("run_dir", "data_dir", "file", "threads", "checkpoint_every")
NO_BOXES = np.zeros((0, 4), np.float32)
SMOKE, SMOKE_PHOTOS = "mobilenet_v1_0.25_128.keras", 64


def resolve(config: Config) -> Config:
    """Checks what can be checked at once, and makes ``--smoke`` small."""
    report.check_ranges(config, **RANGES)
    for phase in config.phases:
        report.check_ranges(phase, above_zero=("rate", "base_factor", "layer_decay"), from_zero=("epochs", "decay"))
    config = replace(config, phases=tuple(phase for phase in config.phases if phase.epochs))
    if not config.phases or config.random_crop > 1:
        raise UserError("--phases wants one phase with epochs at least, and --random-crop a share of 0 … 1")
    if len(names := [phase.name for phase in config.phases]) > len(set(names)):
        raise UserError(f"each phase wants a name of its own, got {', '.join(names)}")
    if config.smoke:
        phases = tuple(replace(phase, epochs=1) for phase in config.phases)
        config = replace(config, weights=SMOKE, file=None, phases=phases, batch_size=16, log_every=1)
    return replace(config, run_dir=report.run_folder(config.run_dir, f"{Path(config.dataset).name}-{config.weights}"))


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    network: predict.Network
    model: transfer.Transfer
    splits: catalog.Splits
    plan: train.Plan
    variables: PyTree
    stages: tuple[str, ...]


def build(config: Config) -> Experiment:
    """Model, data, plan and initial weights."""
    network = predict.network(config.weights, config.file, random=config.smoke, num_classes=None)
    network = network._replace(model=transfer.with_norm_momentum(network.model, config.norm_momentum))
    splits = load_data(config, network)
    model = transfer.Transfer(network.model, len(splits.train.classes), config.dropout)
    variables = transfer.variables(model, network.variables, jax.random.key(config.seed))
    stages = transfer.stages(network.model)
    per_epoch = pipeline.steps_per_epoch(len(splits.train), config.batch_size)
    plan = train.Plan(
        loss_fn=classify.loss_fn(model, training_loss(config, splits)),
        phases=tuple(plan_phase(phase, stages, per_epoch) for phase in config.phases),
        optimizer=optim.sgd(config.momentum, config.weight_decay),
        steps_per_epoch=per_epoch,
        seed=config.seed,
        augment=augmentation(config, network, len(splits.train.classes)),
        ema_decay=config.ema_decay,
    )
    for phase in plan.phases:  # a wrong name is an error now, not an hour later
        optim.split(variables["params"], phase.rules)
    return Experiment(network, model, splits, plan, variables, stages)


def plan_phase(phase: Phase, stages: tuple[str, ...], per_epoch: int) -> optim.Phase:
    """The rules of ``optim`` for one phase."""
    steps = phase.epochs * per_epoch

    def schedule(factor: float) -> Callable:
        if phase.schedule == "cosine":
            return optim.warmup_cosine(factor * phase.rate, steps)
        return optim.inverse_time_decay(factor * phase.rate, phase.decay)

    factors = {"base_factor": phase.base_factor, "layer_decay": phase.layer_decay}
    rules = transfer.rules(stages, phase.train_from, schedule, **factors, frozen_norms=phase.frozen_norms)
    return optim.Phase(phase.name, steps, rules)


def load_data(config: Config, network: predict.Network) -> catalog.Splits:
    """The splits, in memory where they fit, photos brought to the base's size unless they are cropped randomly."""
    fractions = (config.test_fraction, config.valid_fraction)
    splits = catalog.load(config.dataset, config.data_dir, fractions=fractions)
    transform = predict.host_transform(network.entry, config.resize)
    prepared: dict[str, sources.Source] = {}
    for part, source in vars(splits).items():
        if config.smoke:
            source = sources.Subset(source, np.random.default_rng(0).permutation(len(source))[:SMOKE_PHOTOS])
        keep_size = part == "train" and config.random_crop < 1
        prepared[part] = source if keep_size else sources.in_memory_if_small(source, transform, config.in_memory_bytes)
    return catalog.Splits(**prepared)


def training_loss(config: Config, splits: catalog.Splits) -> classify.ExampleLoss:
    """Cross-entropy, smoothed and weighted as configured."""
    labels = sources.labels(splits.train) if config.class_weights else None
    weights = None if labels is None else classify.balanced(labels, len(splits.train.classes))
    return classify.weighted(classify.smoothed(classify.cross_entropy, config.label_smoothing), weights)


def augmentation(config: Config, network: predict.Network, classes: int) -> Callable[[Key, Batch], Batch]:
    """(key, batch of uint8 images, or of features) → batch of what the base takes, augmented as configured."""
    ops: list[augment.Op] = [augment.random_flip_left_right] if config.flip else []
    if config.brightness:
        ops.append(partial(augment.random_brightness, max_change=config.brightness))
    if config.contrast:
        ops.append(partial(augment.random_contrast, max_change=config.contrast))

    def mixed(key: Key, images: Any, targets: Any) -> tuple[Any, Any]:
        chosen = [(f, a) for f, a in ((augment.mixup, config.mixup), (augment.cutmix, config.cutmix)) if a]
        for_which, for_op = jax.random.split(key)
        branches = [partial(lambda f, a, x, y: f(for_op, x, y, a), f, a) for f, a in chosen]
        return jax.lax.switch(jax.random.randint(for_which, (), 0, len(branches)), branches, images, targets)

    def apply(key: Key, batch: Batch) -> Batch:
        if "features" in batch:
            return batch
        each, for_mix = jax.random.split(key)
        images = augment.per_example(augment.compose(*ops), each, classify.unit(batch["image"]))
        batch = dict(batch)
        if config.mixup or config.cutmix:
            images, batch["target"] = mixed(for_mix, images, jax.nn.one_hot(batch["label"], classes))
        return {**batch, "image": preprocess(255 * images, network.entry.preprocess)}

    return apply


class Features(NamedTuple):
    """Of every photo of two splits the base's pooled last maps, ``features`` float32 [n, c], and its ``label``."""

    train: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]


def on_features(config: Config) -> frozenset[str]:
    """Names of the phases that may train on features: of the base as published, so that none before may change it."""
    frozen = itertools.takewhile(lambda phase: phase.train_from == "head", config.phases)
    return frozenset(phase.name for phase in frozen if phase.on_features)


def cached_features(config: Config, experiment: Experiment, mesh: jax.sharding.Mesh) -> Features | None:
    """What phases train on that ask for it, from the cache if it is there; None where none does, or memory is short."""
    if not on_features(config):
        return None
    network, parts = experiment.network, []
    transform = predict.host_transform(network.entry, config.resize)
    for part in (experiment.splits.train, experiment.splits.valid):
        if not isinstance(part, sources.Arrays):
            part = sources.in_memory_if_small(part, transform, config.in_memory_bytes)
        if not isinstance(part, sources.Arrays):
            print("the photos exceed --in-memory-bytes: the frozen base is computed again in each epoch")
            return None
        parts.append(part)
    folder = checksum.cache_folder() / "features"
    return Features(*(transfer.cached_features(folder, *network, part, config.batch_size, mesh) for part in parts))


def train_batches(config: Config, experiment: Experiment, features: Features | None, step: int) -> Iterator[Batch]:
    """Batches from ``step`` on: of features while the base is frozen and they are known, else of photos."""
    ends = itertools.accumulate(phase.steps for phase in experiment.plan.phases)
    for phase, end in zip(config.phases, ends, strict=True):
        if step >= end:
            continue
        if features is not None and phase.name in on_features(config):
            stream = pipeline.array_batches(features.train, config.batch_size, config.seed, step)
        else:
            stream = photo_batches(config, experiment, step)
        yield from itertools.islice(stream, end - step)
        step = end


def photo_batches(config: Config, experiment: Experiment, step: int) -> Iterator[Batch]:
    """Batches of photos from ``step`` on, randomly cropped if so configured."""
    source, entry = experiment.splits.train, experiment.network.entry
    transform = predict.host_transform(entry, config.resize)

    def cropped(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        return box_host.random_resized_crop(rng, image, NO_BOXES, entry.image_size, (config.random_crop, 1.0))[0]

    random = cropped if config.random_crop < 1 else None
    return pipeline.train_batches(
        source, config.batch_size, config.seed, step, transform=transform, random=random, threads=config.threads
    )


def fit_model(
    config: Config, experiment: Experiment, features: Features | None, mesh: jax.sharding.Mesh, run: report.Run
) -> tuple[PyTree, dict[str, float]]:
    """Trains to the end, or until validation no longer gets better; returns the variables and their scores.

    With patience they are those of the best epoch.
    """
    splits, plan = experiment.splits, experiment.plan
    entry = experiment.network.entry
    prepare, transform = partial(preprocess, mode=entry.preprocess), predict.host_transform(entry, config.resize)
    eval_step = train.make_eval_step(classify.eval_fn(experiment.model, prepare, classify.cross_entropy), mesh)
    settings = fit.Settings(config.batch_size, config.log_every, config.checkpoint_every, patience=config.patience)
    batches = partial(train_batches, config, experiment, features)
    for epoch in fit.epochs(plan, experiment.variables, batches, mesh, run, settings):
        if features is not None and epoch.phase in on_features(config):
            valid = pipeline.array_eval_batches(features.valid, config.batch_size)
        else:
            valid = pipeline.eval_batches(splits.valid, config.batch_size, transform=transform, threads=config.threads)
        scores = classification.figures(train.evaluate(eval_step, epoch.variables, valid, mesh), "valid/")
        epoch.report(scores, best="valid/accuracy")
        variables, last = epoch.variables, epoch
    if not config.patience:
        return variables, {**scores, "steps": last.step}
    step, variables = fit.best(plan, experiment.variables, mesh, run)
    return variables, {"valid/accuracy": best_accuracy(run, step), "steps": step}


def best_accuracy(run: report.Run, step: int) -> float:
    """Validation accuracy after ``step``."""
    return next(line["valid/accuracy"] for line in run.records() if line["step"] == step and "phase" in line)


def main(config: Config) -> dict[str, float]:
    """Trains, looks at the test split once, writes the report; returns the summary."""
    sharding.start()
    config = resolve(config)
    mesh = sharding.make_mesh()
    sharding.check_batch(config.batch_size, mesh)
    experiment = build(config)
    facts = {part: len(source) for part, source in vars(experiment.splits).items()}
    facts = {**facts, "classes": list(experiment.splits.train.classes)}
    with report.Run(config.run_dir, config, facts, FREE) as run:
        transfer.show_plan(experiment.plan, experiment.variables["params"], run)
        print(f"parts of the base, in order: {' '.join(experiment.stages)}")
        started = time.perf_counter()
        features = cached_features(config, experiment, mesh)
        variables, scores = fit_model(config, experiment, features, mesh, run)
        seconds = time.perf_counter() - started
        figures, outcome = test(config, experiment, variables, mesh)
        summary = {**figures, **scores}
        if run.writes:
            plot.save(plot.curves(run.records()), run.dir / "curves.png")
            bins = classification.calibration(outcome.probabilities, outcome.labels)
            plot.save(plot.reliability(bins), run.dir / "calibration.png")
            summary["test/calibration_error"] = classification.calibration_error(bins)
            transform = predict.host_transform(experiment.network.entry, config.resize)
            classify.pictures(run.dir, experiment.splits.test, outcome, variables["params"], transform)
        run.finish(summary)
        head = {"dropout": config.dropout}
        card = serve.card(experiment.network, "transfer", config.resize, experiment.splits.train.classes, head)
        serve.save(run.dir, serve.Served(card, experiment.model, variables))
    conclude(config, experiment, summary, outcome, seconds)
    return summary


def test(
    config: Config, experiment: Experiment, variables: PyTree, mesh: jax.sharding.Mesh
) -> tuple[dict[str, float], classify.Outcome]:
    """Figures of the test split, and what the model said of each of its photos."""
    entry, model = experiment.network.entry, experiment.model
    transform = predict.host_transform(entry, config.resize)
    batches = pipeline.eval_batches(
        experiment.splits.test, config.batch_size, transform=transform, threads=config.threads
    )
    prepare = partial(preprocess, mode=entry.preprocess)
    return classify.test(model, prepare, classify.cross_entropy, variables, batches, mesh)


def conclude(
    config: Config, experiment: Experiment, summary: dict[str, float], outcome: classify.Outcome, seconds: float
) -> None:
    """The closing tables."""
    report.table("test split, by class", classification.per_class(outcome.confusion, experiment.splits.test.classes))
    facts = {
        "base": config.weights,
        "data": f"{config.dataset}, {len(experiment.splits.train):,} training photos",
        "trained in": f"{seconds:.0f} s",
        "validation accuracy": f"{summary['valid/accuracy']:.2%} of {len(experiment.splits.valid):,} photos",
        "test accuracy": f"{summary['test/accuracy']:.2%} of {len(outcome.labels):,} photos",
        "results in": str(config.run_dir),
    }
    report.table("result", [{"": name, " ": value} for name, value in facts.items()])


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
