"""Super-resolution of photos: EDSR, a fully convolutional network with sub-pixel convolutions, beside bicubic.

    python experiments/super_resolution.py                                  # tf_flowers, twice the size
    python experiments/super_resolution.py --dataset path/to/folder --factor 4
    python experiments/super_resolution.py --dataset path/to/folder --smoke

Photos are cut into random squares and made smaller; the network learns to undo that. The weights with the best PSNR on
the validation split are kept. The test split is evaluated once: summary.json has ``test/psnr`` in dB and ``test/ssim``
of the luminance, the same of bicubic interpolation, and the ``gain``.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import flax.linen as linen
import jax
import numpy as np
import tyro

from cnnjax import cli, experiment, plot, report, serving, settings, train
from cnnjax.data import catalog, patches, pipeline, sources, splits
from cnnjax.data.augment import compose
from cnnjax.tasks import super_resolve
from cnnjax.types import Picture, PyTree, Task, UserError


@dataclass(frozen=True)
class Config:
    """Data, network and training."""

    dataset: Annotated[str, settings.LOCATES] = "tf_flowers"
    """Photos: a folder with a sub-folder for each class, or a tfds data set; the classes do not matter."""
    factor: Literal[2, 4] = 2
    """Factor by which height and width grow."""
    patch: settings.Pixels = 24
    """Side of the small squares that training sees, in pixels."""
    shown: settings.Pixels = 48
    """Side of the small squares, from the middle of the photos, on which the network is evaluated."""
    blocks: settings.PositiveInt = 8
    """Residual blocks; the paper's baseline has 16."""
    features: settings.PositiveInt = 32
    """Features of the blocks; the paper's baseline has 64."""
    batch_size: settings.PositiveInt = 16
    """Squares per step, over all devices."""
    epochs: settings.PositiveInt = 20
    """Passes over the training split, with one square of each photo."""

    optimization: tyro.conf.OmitArgPrefixes[settings.Optimization] = settings.Optimization(weight_decay=0.0)
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop(keep="best")
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"super-resolution-{config.dataset.rstrip('/').rsplit('/', 1)[-1]}")
    if not config.output.smoke:
        return config
    small = {"patch": 8, "shown": 12, "blocks": 1, "features": 8}
    return settings.change(config, batch_size=8, epochs=1, log_every=1, **small)


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    splits: splits.Splits
    card: serving.Card
    task: Task
    model: linen.Module
    plan: train.Plan
    variables: PyTree


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    found = load_data(config)
    per_epoch = pipeline.steps_per_epoch(len(found.train), config.batch_size)
    card = card_of(config)
    model = card.module()
    shape = (config.patch, config.patch, 3)
    variables = jax.jit(model.init)(jax.random.key(config.loop.seed), np.zeros((1, *shape), np.float32))
    variables = experiment.initial(config.loop, model, variables, shape)
    task = super_resolve.task(model, card.prepare)
    augment = experiment.augmentation(compose())
    plan = config.optimization.plan(task, config.epochs, per_epoch, config.loop.seed, augment)
    return Experiment(found, card, task, model, plan, variables)


def card_of(config: Config) -> serving.Card:
    """Card of the network, which takes photos of any size: ``image_size`` is that of evaluation."""
    return serving.Card(
        task="super_resolve",
        model="edsr",
        fields={"factor": config.factor, "blocks": config.blocks, "features": config.features},
        head={},
        classes=(),
        preprocess="unit",
        image_size=config.shown,
        channels=3,
        fit="center",
        resize=config.shown,
        resample="bicubic",
    )


def load_data(config: Config) -> splits.Splits:
    """Splits, of which valid and test are pairs of small and large squares; photos that are too small are left out."""
    reading, side = config.reading, config.factor * max(config.patch, config.shown)
    found = catalog.load(config.dataset, reading.data_dir, fractions=reading.fractions())
    found = experiment.load(found, reading, None, smoke=config.output.smoke, keep=tuple(found.given))
    parts = {part: large_enough(source, side) for part, source in found.given.items()}
    pair = patches.central_patch(config.shown, config.factor)
    ready = {part: sources.Mapped(each, pair) for part, each in parts.items() if part != "train"}
    limit = reading.in_memory_bytes
    return replace(
        found,
        train=parts["train"],
        **{part: sources.in_memory_if_small(each, limit) for part, each in ready.items()},
    )


def large_enough(source: sources.Source, side: int) -> sources.Source:
    """Photos of at least ``side`` pixels in height and width; each is read.

    Raises:
      UserError: there is none.
    """
    places = [i for i in range(len(source)) if min(source[i]["image"].shape[:2]) >= side]
    if not places:
        raise UserError(f"none of {len(source)} photos has {side}×{side} pixels: take a smaller --patch or --shown")
    if len(places) < len(source):
        report.say(f"{len(source) - len(places)} of {len(source)} photos are smaller than {side} pixels: left out")
    return sources.Subset(source, np.array(places, int))


def main(config: Config) -> dict[str, float]:
    """Trains the network, evaluates it on the test split (or valid), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    train_split, valid, (last, test) = built.splits.train, built.splits.valid, built.splits.last
    load = pipeline.loader(train_split, patches.random_patch(config.patch, config.factor))
    batches = config.reading.batches(train_split, config.batch_size, config.loop.seed, load)
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, valid, score, mesh, run, config.loop, config.batch_size
        )
        summary = {**score(variables, test, last).figures, **scores}
        served = serving.Served(built.card, built.model, variables)
        experiment.finish(run, summary, served, {"before_after.png": lambda: before_after(built, variables, test)})
        facts = {
            "photos": ", ".join(f"{part} {len(source)}" for part, source in built.splits.given.items()),
            f"{last} PSNR": f"{summary[f'{last}/psnr']:.2f} dB, bicubic {summary[f'{last}/bicubic_psnr']:.2f}",
            f"{last} SSIM": f"{summary[f'{last}/ssim']:.4f}, bicubic {summary[f'{last}/bicubic_ssim']:.4f}",
        }
        experiment.conclude(run, facts)
    return summary


def before_after(built: Experiment, variables: PyTree, test: sources.Source) -> plot.Figure:
    """Photos as they were, made small, enlarged by the network."""
    few = sources.stack([test[i] for i in range(min(experiment.PICTURED, len(test)))])
    found = np.asarray(jax.jit(built.task.predict)(variables, few["image"])["image"])
    titles = ("small", "enlarged", "photo")
    rows = zip(few["image"], found, few["target"], strict=True)
    return plot.pictures([Picture(x, title) for row in rows for x, title in zip(row, titles, strict=True)], columns=3)


if __name__ == "__main__":
    cli.main(main, Config)
