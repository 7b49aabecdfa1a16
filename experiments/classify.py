"""Trains any model on any classification data set; by default a CNN on the scanned digits that ship with scikit-learn.

    python experiments/classify.py                                          # digits: about 1 min on 2 CPU cores
    python experiments/classify.py --dataset fashion_mnist                  # the chapter's network
    python experiments/classify.py --dataset mnist --model lenet5           # LeNet-5 as in 1998
    python experiments/classify.py --dataset path/to/folder                 # one sub-folder per class

The figures to expect are in the README. Give ``--run-dir`` again to go on with a run that was stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cnnjax import compiler, fit, losses, models, optim, plot, report, sharding, train
from cnnjax.data import augment, catalog, host, pipeline, sources
from cnnjax.metrics import classification
from cnnjax.tasks import classify, serve
from cnnjax.types import Batch, Key, PyTree, UserError


@dataclass(frozen=True)
class Config:
    """What to train on what. A default of None is set by data set and model: see RECIPES in this file."""

    dataset: str = "digits"
    """digits, a tfds name (fashion_mnist, mnist, cifar10, …), or a folder with one sub-folder per class."""
    data_dir: Path | None = None
    """Where tfds data sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    train_split: str | None = None
    """tfds split syntax, e.g. train[:10%%]; None: the usual split."""
    valid_split: str | None = None
    """As train_split; picks the best checkpoint."""
    test_split: str | None = None
    """As train_split; looked at once, at the end."""
    channels: Literal[1, 3] = 3
    """What the images of a folder are converted to."""
    image_size: int | None = None
    """Pixels: the shorter side is brought to it, then the central square is cut. None: as they are."""
    skip_corrupt: bool = False
    """Read all images of a folder first and leave out those that cannot be read."""

    model: str | None = None
    """One of cnnjax.models.names()."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; parameters are float32."""
    epochs: int | None = None
    """Passes over the training split."""
    batch_size: int | None = None
    """Images per step, over all devices."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum."""
    learning_rate: float | None = None
    """At its peak."""
    schedule: Literal["cosine", "step", "inverse"] = "cosine"
    """cosine to 0; step: a tenth at 50 % and 75 %; inverse: the chapter's rate / (1 + decay·t)."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, with cosine."""
    decay: float = 0.001
    """Per step, with inverse."""
    momentum: float = 0.9
    """With sgd."""
    weight_decay: float = 1e-4
    """On kernels."""
    clip_norm: float | None = None
    """Global L2 norm that gradients are clipped to."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, 0 … 1."""
    ema_decay: float | None = None
    """Per step; evaluates a moving average of the weights."""
    accumulate: int = 1
    """Compute a batch in so many parts: less memory."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    tune_malloc: bool = False
    """Keep freed memory in the process (glibc only): steps on CPUs are faster, memory stays at its peak."""

    shift: float | None = None
    """Pixels, at most, in each direction."""
    rotate: float | None = None
    """Degrees, at most, either way."""
    zoom: float | None = None
    """At most, as a fraction: 0.1 zooms by 0.9 … 1.1."""
    flip: bool | None = None
    """Mirror half of the images."""
    brightness: float = 0.0
    """At most, as a fraction."""
    contrast: float = 0.0
    """At most, as a fraction."""
    cutout: int = 0
    """Side of the square that is blanked, in pixels."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that pairs of images are mixed with; 0: off."""

    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given. Given again, the run goes on."""
    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""
    log_every: int = 10
    """Steps between lines of training metrics."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; there is always one after each epoch."""
    in_memory_bytes: int = 2**31
    """Splits up to this size are decoded once, into arrays; larger ones are read as they are needed."""
    threads: int = 8
    """That read images as needed."""
    workers: int = 0
    """Processes that do so, each with its threads; 0: only threads."""
    smoke: bool = False
    """A few steps of everything, to see that it works."""


RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "digits_cnn",
        "epochs": 60,
        "learning_rate": 3e-3,
        "ema_decay": 0.99,
        "shift": 0.5,
        "rotate": 10.0,
        "zoom": 0.1,
    },
    "fashion_mnist": {"epochs": 10, "flip": True},
    "mnist": {"epochs": 12, "shift": 2.0, "rotate": 10.0, "zoom": 0.1},
    "photos": {"epochs": 30, "image_size": 64, "shift": 4.0, "rotate": 10.0, "zoom": 0.1, "flip": True},
    "cifar10": {"epochs": 30, "shift": 4.0, "flip": True},
    "any": {
        "model": "fashion_cnn",
        "epochs": 10,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "shift": 0.0,
        "rotate": 0.0,
        "zoom": 0.0,
        "flip": False,
    },
}
# What numbers are possible; the flags are checked before anything else.
RANGES = {
    "above_zero": ("epochs", "batch_size", "learning_rate", "accumulate", "log_every", "image_size", "clip_norm"),
    "from_zero": (
        *("warmup_epochs", "decay", "weight_decay", "shift", "rotate", "cutout", "mixup"),
        *("seed", "checkpoint_every", "threads", "workers", "in_memory_bytes"),
    ),
    "below_one": ("momentum", "label_smoothing", "ema_decay", "zoom", "brightness", "contrast"),
}
# What may differ when a run is resumed: where things are and how they are read, not what is computed.
FREE = ("run_dir", "data_dir", "in_memory_bytes", "threads", "workers", "checkpoint_every", "tune_malloc")
SMOKE_EXAMPLES = 64


def resolve(config: Config) -> Config:
    """Fills what was left None from RECIPES, and checks what can be checked before any data is read."""
    photos = config.dataset == "tf_flowers" or catalog.is_folder(config.dataset)
    recipe = {**RECIPES["any"], **RECIPES.get("photos" if photos else config.dataset, {})}
    config = replace(config, **{name: value for name, value in recipe.items() if getattr(config, name) is None})
    report.check_ranges(config, **RANGES)
    if config.smoke:
        config = replace(config, epochs=2, batch_size=16, log_every=1)
    if config.model == "lenet5" and (config.label_smoothing or config.mixup):
        raise UserError("lenet5's loss takes hard labels: use it without --label-smoothing and --mixup")
    return replace(config, run_dir=report.run_folder(config.run_dir, f"{Path(config.dataset).name}-{config.model}"))


def load_data(config: Config) -> catalog.Splits:
    """The splits of the data set: in memory, each image of the same shape, where they fit; else read as needed."""
    texts = {part: getattr(config, f"{part}_split") for part in ("train", "valid", "test")}
    splits = catalog.load(config.dataset, config.data_dir, texts, config.channels)
    prepared = {part: _prepare(config, part, getattr(splits, part)) for part in texts}
    return catalog.Splits(**prepared)


def _prepare(config: Config, part: str, source: sources.Source) -> sources.Source:
    if config.smoke:
        few = np.random.default_rng(0).permutation(len(source))[:SMOKE_EXAMPLES]
        source = sources.Subset(source, few)
    if config.skip_corrupt:
        source, errors = sources.readable(source)
        for error in errors:
            print(f"skipped: {error}")
        print(f"{part}: {len(source)} images, {len(errors)} corrupt ones skipped")
    return sources.in_memory_if_small(source, host_transform(config), config.in_memory_bytes)


def host_transform(config: Config) -> host.Transform | None:
    """What brings every image to one shape."""
    return host.center_crop(config.image_size) if config.image_size else None


def augmentation(config: Config, classes: int) -> Callable[[Key, Batch], Batch]:
    """(key, batch of uint8 images) → batch of float images in 0 … 1, augmented as configured."""
    ops: list[augment.Op] = []
    if config.flip:
        ops.append(augment.random_flip_left_right)
    if config.shift or config.rotate or config.zoom:
        limits = {"max_degrees": config.rotate, "max_change": config.zoom, "max_pixels": config.shift}
        ops.append(partial(augment.random_affine, **limits))
    if config.brightness:
        ops.append(partial(augment.random_brightness, max_change=config.brightness))
    if config.contrast:
        ops.append(partial(augment.random_contrast, max_change=config.contrast))
    if config.cutout:
        ops.append(partial(augment.random_cutout, side=config.cutout))

    def apply(key: Key, batch: Batch) -> Batch:
        each, mixed = jax.random.split(key)
        images = augment.per_example(augment.compose(*ops), each, classify.unit(batch["image"]))
        if not config.mixup:
            return {**batch, "image": images}
        images, target = augment.mixup(mixed, images, jax.nn.one_hot(batch["label"], classes), config.mixup)
        return {**batch, "image": images, "target": target}

    return apply


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    model: Any
    splits: catalog.Splits
    loss: classify.ExampleLoss
    plan: train.Plan
    variables: PyTree


def build(config: Config) -> Experiment:
    """Model, data, plan and initial weights."""
    splits = load_data(config)
    classes = len(splits.train.classes)
    model = models.create(config.model, num_classes=classes, dtype=jnp.dtype(config.dtype))
    shape_fixed = host_transform(config)
    image = splits.train[0]["image"]
    image = image if shape_fixed is None else shape_fixed(image)
    try:
        variables = jax.jit(model.init)(jax.random.key(config.seed), classify.unit(image[None]))
    except ValueError as error:
        raise UserError(f"{config.model} cannot take the images of {config.dataset}: {error}") from error
    # LeNet-5's output layer is a distance, with a loss of its own (its eq. 9); the others give logits.
    loss = losses.rbf_map_loss if config.model == "lenet5" else classify.cross_entropy
    per_epoch = pipeline.steps_per_epoch(len(splits.train), config.batch_size)
    plan = train.Plan(
        loss_fn=classify.loss_fn(model, classify.smoothed(loss, config.label_smoothing)),
        phases=(optim.Phase("train", config.epochs * per_epoch, ((".*", schedule(config, per_epoch)),)),),
        optimizer=optim.adamw(config.weight_decay)
        if config.optimizer == "adamw"
        else optim.sgd(config.momentum, config.weight_decay),
        steps_per_epoch=per_epoch,
        seed=config.seed,
        augment=augmentation(config, classes),
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        remat=config.remat,
    )
    return Experiment(model, splits, loss, plan, variables)


def schedule(config: Config, per_epoch: int) -> Callable:
    """The learning rate by step."""
    steps = config.epochs * per_epoch
    if config.schedule == "cosine":
        warmup = min(round(config.warmup_epochs * per_epoch), steps // 2)
        return optim.warmup_cosine(config.learning_rate, steps, warmup)
    if config.schedule == "step":
        return optim.step_decay(config.learning_rate, [steps // 2, steps * 3 // 4])
    return optim.inverse_time_decay(config.learning_rate, config.decay)


def main(config: Config) -> dict[str, float]:
    """Trains, looks at the test split once, writes the report; returns the summary."""
    sharding.start()
    if config.tune_malloc:
        compiler.tune_malloc()
    config = resolve(config)
    mesh = sharding.make_mesh()
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    experiment = build(config)
    facts = {part: len(source) for part, source in vars(experiment.splits).items()}
    facts = {**facts, "classes": list(experiment.splits.train.classes)}
    with report.Run(config.run_dir, config, facts, FREE) as run:
        started = time.perf_counter()
        variables, scores = fit_model(config, experiment, mesh, run)
        seconds = time.perf_counter() - started
        figures, outcome = test(config, experiment, variables, mesh)
        summary = {**figures, **scores, "steps": experiment.plan.total_steps}
        if run.writes:
            plot.save(plot.curves(run.records()), run.dir / "curves.png")
            source, transform = experiment.splits.test, host_transform(config)
            classify.pictures(run.dir, source, outcome, variables["params"], transform)
        run.finish(summary)
        if known := card(config, experiment):
            serve.save(run.dir, serve.Served(known, experiment.model, variables))
    conclude(config, experiment, summary, outcome, seconds)
    return summary


def card(config: Config, experiment: Experiment) -> serve.Card | None:
    """What predict.py must know of the network; None for images that are not square, which it does not prepare."""
    image = experiment.splits.test[0]["image"]
    size = config.image_size or image.shape[0]
    if not config.image_size and image.shape[0] != image.shape[1]:
        return None
    return serve.Card(
        task="classify",
        model=config.model,
        fields={"dtype": config.dtype},
        head={},
        classes=tuple(experiment.splits.train.classes),
        preprocess="unit",
        image_size=size,
        channels=image.shape[2],
        fit="center",
        resize=size,
        resample="bilinear",
    )


def fit_model(
    config: Config, experiment: Experiment, mesh: jax.sharding.Mesh, run: report.Run
) -> tuple[PyTree, dict[str, float]]:
    """Trains to the end; returns the final variables and their validation scores."""
    splits, transform = experiment.splits, host_transform(config)
    reading = {"transform": transform, "threads": config.threads}
    batches = partial(
        pipeline.train_batches, splits.train, config.batch_size, config.seed, workers=config.workers, **reading
    )
    eval_step = train.make_eval_step(classify.eval_fn(experiment.model, classify.unit, experiment.loss), mesh)
    settings = fit.Settings(config.batch_size, config.log_every, config.checkpoint_every)
    for epoch in fit.epochs(experiment.plan, experiment.variables, batches, mesh, run, settings):
        valid = pipeline.eval_batches(splits.valid, config.batch_size, **reading)
        scores = classification.figures(train.evaluate(eval_step, epoch.variables, valid, mesh), "valid/")
        epoch.report(scores, best="valid/accuracy")
        variables = epoch.variables
    return variables, scores


def test(
    config: Config, experiment: Experiment, variables: PyTree, mesh: jax.sharding.Mesh
) -> tuple[dict[str, float], classify.Outcome]:
    """Figures of the test split, and what the model said of each of its examples."""
    reading = {"transform": host_transform(config), "threads": config.threads}
    batches = pipeline.eval_batches(experiment.splits.test, config.batch_size, **reading)
    return classify.test(experiment.model, classify.unit, experiment.loss, variables, batches, mesh)


def conclude(
    config: Config, experiment: Experiment, summary: dict[str, float], outcome: classify.Outcome, seconds: float
) -> None:
    """The closing tables."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.variables["params"]))
    if len(outcome.confusion) <= 20:
        rows = classification.per_class(outcome.confusion, experiment.splits.test.classes)
        report.table("test split, by class", rows)
    facts = {
        "model": f"{config.model}, {parameters:,} parameters",
        "data": f"{config.dataset}, {len(experiment.splits.train):,} training images",
        "trained in": f"{seconds:.0f} s",
        "test accuracy": f"{summary['test/accuracy']:.2%} of {len(outcome.labels):,} images",
        "results in": str(config.run_dir),
    }
    report.table("result", [{"": name, " ": value} for name, value in facts.items()])


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
