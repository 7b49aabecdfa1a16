"""Transfer learning, the chapter's way: a published network with a new head learns to distinguish flowers.

    python experiments/flowers.py                                              # Xception: downloads 92 MB once
    python experiments/flowers.py --phases.0.epochs 1 --phases.1.epochs 0       # the head alone
    python experiments/flowers.py --dataset path/to/folder                     # one sub-folder of photos per class
    python experiments/flowers.py --smoke                                      # random weights, nothing is downloaded

First only the new head trains, on features of the frozen base that are computed once and kept in the cache; then all of
the network, at a lower rate. The plan is printed, and drawn in plan.png, before anything trains. The test split is
evaluated once, at the end. Figures and times are in docs/results.md.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import tyro

from cnnjax import cli, experiment, fit, optim, pretrained, report, serving, settings, train
from cnnjax.data import catalog, pipeline, sources, transforms
from cnnjax.metrics import classification
from cnnjax.tasks import classify, transfer
from cnnjax.types import PyTree, Task


@dataclass(frozen=True)
class Config:
    """Data, base and training."""

    dataset: Annotated[str, settings.LOCATES] = "tf_flowers"
    """Name of a tfds data set, or a folder with one sub-folder per class; tf_flowers is cut as in the chapter."""
    resize: pretrained.Resize = "squeeze"
    """squeeze: whole image, proportions lost (the chapter's); crop: as published; square: largest central square."""
    random_crop: settings.Share = 1.0
    """Smallest share of an image's area that a random crop keeps; 1: no random crops, the whole image."""

    phases: tuple[settings.Phase, ...] = (
        settings.Phase("frozen", 5, decay=0.01, train_from="head"),
        settings.Phase("fine-tune", 40, decay=0.001),
    )
    """Phases of training; the default is the chapter's, with learning rates that suit the base."""
    batch_size: settings.PositiveInt = 32
    """Images per step, over all devices."""
    momentum: settings.Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: settings.NonNegative = 0.0
    """Weight decay of kernels."""
    dropout: settings.Fraction = 0.0
    """Share of features dropped before the head's dense layer."""
    label_smoothing: settings.Fraction = 0.0
    """Share of the target that is divided evenly among the classes, 0 … 1."""
    class_weights: bool = False
    """Weigh each class by the inverse of its share of the training images."""
    ema_decay: settings.Fraction | None = None
    """Decay per step of a moving average of the weights, which is then evaluated."""
    patience: settings.NonNegativeInt = 0
    """Epochs of the last phase without a better validation accuracy that end the run, at the best weights; 0: never."""

    base: tyro.conf.OmitArgPrefixes[settings.Base] = settings.Base("xception.keras")
    augmentation: tyro.conf.OmitArgPrefixes[settings.Augmentation] = settings.Augmentation()
    mixing: tyro.conf.OmitArgPrefixes[settings.Mixing] = settings.Mixing()
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop(keep="best")
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"{Path(config.dataset).name}-{config.base.name}")
    rates = transfer.learning_rates(config.base.entry().model)
    phases = transfer.with_learning_rates(settings.used(config.phases), *rates)
    config = settings.change(config, phases=phases, keep="best" if config.patience else config.loop.keep)
    return experiment.smoke(config, batch_size=16) if config.output.smoke else config


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    splits: catalog.Splits
    network: pretrained.Network
    model: transfer.Transfer
    task: Task
    plan: train.Plan
    variables: PyTree
    stages: tuple[str, ...]


def load_data(config: Config, network: pretrained.Network) -> catalog.Splits:
    """Splits, in memory where they fit, images resized for the base unless they are cropped randomly."""
    splits = catalog.load(config.dataset, config.reading.data_dir, fractions=config.reading.fractions(usual=0.1))
    transform = pretrained.host_transform(network.entry, config.resize)
    options = {"smoke": config.output.smoke, "keep": ("train",) if config.random_crop < 1 else ()}
    return experiment.load(splits, config.reading, transform, **options)


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    network = config.base.network(random=config.output.smoke)
    splits = load_data(config, network)
    classes = splits.train.classes
    per_epoch = pipeline.steps_per_epoch(len(splits.train), config.batch_size)
    network = config.base.tuned(network, per_epoch)
    model = transfer.Transfer(network.model, len(classes), config.dropout)
    variables = transfer.variables(model, network.variables, jax.random.key(config.loop.seed))
    variables = experiment.initial(config.loop, model, variables, network.model.image_shape)
    network = network._replace(variables=transfer.base_variables(variables))  # features are those of this base
    stages = transfer.stages(network.model)
    weights = classify.balanced(sources.labels(splits.train), len(classes)) if config.class_weights else None
    loss = classify.weighted(classify.smoothed(classify.cross_entropy, config.label_smoothing), weights)
    task = transfer.task(model, network.prepare, classes, loss=loss)
    op = config.augmentation.op(network.entry.image_size)
    plan = train.Plan(
        task=task,
        phases=transfer.phases(config.phases, stages, per_epoch),
        optimizer=optim.sgd(config.momentum, config.weight_decay),
        steps_per_epoch=per_epoch,
        seed=config.loop.seed,
        augment=experiment.augmentation(op, network.prepare, config.mixing, len(classes)),
        ema_decay=config.ema_decay,
    )
    return Experiment(splits, network, model, task, plan, variables, stages)


def cached_features(config: Config, built: Experiment, mesh: jax.sharding.Mesh) -> dict[str, sources.Arrays]:
    """Features of the splits train and valid; empty where no phase trains on them, or the images exceed the memory."""
    if not any(transfer.on_features(config.phases)):
        return {}
    parts = {"train": built.splits.train, "valid": built.splits.valid}
    transform = pretrained.host_transform(built.network.entry, config.resize)
    options = transform, config.batch_size, mesh, config.reading.in_memory_bytes
    return pretrained.cached_features(built.network, parts, *options)


def batches(config: Config, built: Experiment, features: sources.Arrays | None) -> settings.Batches:
    """Step → batches of features or, where there are none, of images, randomly cropped if so configured."""
    source, load = features or built.splits.train, None
    if features is None and config.random_crop < 1:
        crop = transforms.random_resized_crop(built.network.entry.image_size, (config.random_crop, 1.0))
        load = pipeline.loader(source, crop)
    return config.reading.batches(source, config.batch_size, config.loop.seed, load)


def fit_model(
    config: Config,
    built: Experiment,
    features: dict[str, sources.Arrays],
    score: experiment.Scorer,
    mesh: jax.sharding.Mesh,
    run: report.Run,
) -> tuple[PyTree, dict[str, float]]:
    """Trains to the end, or until patience ends the run; returns the variables to keep and their scores."""
    plan = built.plan
    seen = [features if cached else {} for cached in transfer.on_features(config.phases)]
    parts = [(phase.steps, batches(config, built, x.get("train"))) for phase, x in zip(plan.phases, seen, strict=True)]
    valid = {phase.name: x.get("valid", built.splits.valid) for phase, x in zip(plan.phases, seen, strict=True)}
    stream, options = partial(pipeline.in_turn, parts), config.loop.fit_settings(config.batch_size, config.patience)
    for epoch in fit.epochs(plan, built.variables, stream, mesh, run, options):
        scores = score(epoch.variables, valid[epoch.phase], "valid").figures
        epoch.report(scores, best=f"valid/{plan.task.best}")
    return experiment.kept(config.loop.keep, plan, built.variables, mesh, run, epoch)


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates the test split (or valid, if there is none), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    last, test = built.splits.last
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        print(f"parts of the base, in order: {' '.join(built.stages)}")
        momentum = vars(built.network.model).get("momentum", "none")
        print(f"{built.plan.steps_per_epoch} steps in an epoch; BatchNorm's momentum: {momentum}")
        started = time.perf_counter()
        features = cached_features(config, built, mesh)
        variables, scores = fit_model(config, built, features, score, mesh, run)
        seconds = time.perf_counter() - started
        figures, sums, rows = score(variables, test, last)
        summary = {**figures, **scores}
        card = serving.card(built.network.entry, "transfer", config.resize, test.classes, {"dropout": config.dropout})
        served = serving.Served(card, built.model, variables)
        experiment.finish(run, summary, served, classify.pictures(test, sums, rows, variables["params"]))
        facts = {
            "data": f"{config.dataset}, {len(built.splits.train):,} training photos",
            "base, training": f"{config.base.name}, {seconds:.0f} s",
            **{
                f"{part} accuracy": f"{summary[f'{part}/accuracy']:.2%} of {len(source):,} photos"
                for part, source in built.splits.given.items()
                if part != "train"
            },
        }
        by_class = classification.per_class(sums["confusion"], test.classes)
        experiment.conclude(run, facts, {f"{last} split, by class": by_class})
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
