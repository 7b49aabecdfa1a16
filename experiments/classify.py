"""Trains any model on any classification data set; by default a CNN on the scanned digits that ship with scikit-learn.

    python experiments/classify.py                                          # digits: about 1 min on 2 CPU cores
    python experiments/classify.py --dataset fashion_mnist                  # the chapter's network
    python experiments/classify.py --dataset mnist --model lenet5           # LeNet-5 as in 1998
    python experiments/classify.py --dataset path/to/folder                 # one sub-folder per class

The figures to expect are in docs/results.md. Give ``--run-dir`` again to resume a run that was stopped.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from cnnjax import cli, experiment, losses, models, serving, settings, train
from cnnjax.data import catalog, pipeline, transforms
from cnnjax.metrics import classification
from cnnjax.tasks import classify
from cnnjax.types import PyTree, Task, UserError


@dataclass(frozen=True)
class Config:
    """Data, model and training; where a data set has a recipe (see RECIPES), its values are the defaults."""

    dataset: Annotated[str, settings.LOCATES] = "digits"
    """digits, a tfds name (fashion_mnist, mnist, cifar10, …), or a folder with one sub-folder per class."""
    train_split: str | None = None
    """Split in tfds' syntax, e.g. train[:10%]; None: the usual one."""
    valid_split: str | None = None
    """Split that is evaluated after each epoch; the checkpoint with the best score is kept, too."""
    test_split: str | None = None
    """Split that is evaluated once, at the end; without one, the validation split is."""
    channels: Literal[1, 3] = 3
    """Channels of the images of a folder after conversion."""
    image_size: settings.Pixels | None = None
    """Height and width in pixels: the shorter side is resized to it, then the center is cut out. None: as they are."""

    model: str = "fashion_cnn"
    """Name of cnnjax.models.names()."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    epochs: settings.PositiveInt = 10
    """Passes over the training split."""
    batch_size: settings.PositiveInt = 64
    """Images per step, over all devices."""
    label_smoothing: settings.Fraction = 0.0
    """Share of the target that is divided evenly among the classes, 0 … 1."""

    optimization: tyro.conf.OmitArgPrefixes[settings.Optimization] = settings.Optimization()
    augmentation: tyro.conf.OmitArgPrefixes[settings.Augmentation] = settings.Augmentation()
    mixing: tyro.conf.OmitArgPrefixes[settings.Mixing] = settings.Mixing()
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


_TURNED = {"rotate": 10.0, "zoom": 0.1}
_DIGITS = {"model": "digits_cnn", "epochs": 60, "learning_rate": 3e-3, "ema_decay": 0.99, "shift": 1 / 16, **_TURNED}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "fashion_mnist": {"flip": True},
    "mnist": {"epochs": 12, "shift": 2 / 28, **_TURNED},
    "photos": {"epochs": 30, "image_size": 64, "shift": 1 / 16, "flip": True, **_TURNED},
    "cifar10": {"epochs": 30, "shift": 1 / 8, "flip": True},
}


def recipe(dataset: str) -> Config:
    """Config for a data set, by its recipe; flags change it."""
    photos = dataset == "tf_flowers" or catalog.is_folder(dataset)
    return settings.change(Config(), dataset=dataset, **RECIPES.get("photos" if photos else dataset, {}))


def resolve(config: Config) -> Config:
    """Checks the settings before any data is read, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"{Path(config.dataset).name}-{config.model}")
    if config.model == "lenet5" and (config.label_smoothing or config.mixing != settings.Mixing()):
        raise UserError("lenet5's loss takes hard labels: use it without --label-smoothing, --mixup and --cutmix")
    return settings.change(config, epochs=2, batch_size=16, log_every=1) if config.output.smoke else config


def load_data(config: Config) -> catalog.Splits:
    """Splits of the data set, each image of the same shape; in memory where they fit."""
    texts = {part: getattr(config, f"{part}_split") for part in ("train", "valid", "test")}
    reading = config.reading
    splits = catalog.load(config.dataset, reading.data_dir, texts, config.channels, reading.fractions())
    transform = transforms.center_crop(config.image_size) if config.image_size else None
    return experiment.load(splits, config.reading, transform, smoke=config.output.smoke)


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    splits: catalog.Splits
    card: serving.Card
    model: Any
    task: Task
    plan: train.Plan
    variables: PyTree


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    splits = load_data(config)
    image, classes = splits.train[0]["image"], splits.train.classes
    card = serving.Card(
        task="classify",
        model=config.model,
        fields={"dtype": config.dtype},
        head={},
        classes=tuple(classes),
        preprocess="unit",
        image_size=image.shape[0],
        channels=image.shape[2],
        fit="center",
        resize=image.shape[0],
        resample="bilinear",
    )
    model = card.module(models.create)
    try:
        variables = jax.jit(model.init)(jax.random.key(config.loop.seed), classify.unit(image[None]))
    except ValueError as error:
        raise UserError(f"{config.model} cannot take the images of {config.dataset}: {error}") from error
    variables = experiment.initial(config.loop, model, variables, image.shape)
    # LeNet-5's output layer is a distance, with a loss of its own (its eq. 9); the others give logits.
    loss = losses.rbf_map_loss if config.model == "lenet5" else classify.cross_entropy
    task = card.make_task(model, loss=classify.smoothed(loss, config.label_smoothing), eval_loss=loss)
    per_epoch = pipeline.steps_per_epoch(len(splits.train), config.batch_size)
    op = config.augmentation.op(image.shape[0])
    augment = experiment.augmentation(op, mixing=config.mixing, classes=len(classes))
    plan = config.optimization.plan(task, config.epochs, per_epoch, config.loop.seed, augment)
    return Experiment(splits, card, model, task, plan, variables)


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates the test split (or valid, if there is none), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, config.optimization.accumulate, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    train_split, valid, (last, test) = built.splits.train, built.splits.valid, built.splits.last
    batches = config.reading.batches(train_split, config.batch_size, config.loop.seed)
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        started = time.perf_counter()
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, valid, score, mesh, run, config.loop, config.batch_size
        )
        seconds = time.perf_counter() - started
        figures, sums, rows = score(variables, test, last)
        summary = {**figures, **scores}
        square = len({*test[0]["image"].shape[:2]}) == 1
        if not square:
            print("the images are not square: no network is kept, which predict.py could not feed")
        served = serving.Served(built.card, built.model, variables) if square else None
        experiment.finish(run, summary, served, classify.pictures(test, sums, rows, variables["params"]))
        facts = {
            "model": f"{config.model}, {sum(x.size for x in jax.tree.leaves(variables['params'])):,} parameters",
            "data": f"{config.dataset}, {len(train_split):,} training images",
            "trained in": f"{seconds:.0f} s",
            f"{last} accuracy": f"{summary[f'{last}/accuracy']:.2%} of {len(test):,} images",
        }
        few = classification.per_class(sums["confusion"], test.classes) if len(test.classes) <= 20 else ()
        experiment.conclude(run, facts, {f"{last} split, by class": few})
    return summary


if __name__ == "__main__":
    cli.main(main, Config, lambda config: recipe(config.dataset))
