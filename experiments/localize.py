"""Classification with localization: what the one object in a photo is, and the box around it.

    python experiments/localize.py --dataset path/to/voc --class-weight 0.5      # as in the README
    python experiments/localize.py --dataset path/to/coco.json --box-loss giou
    python experiments/localize.py --dataset path/to/voc --smoke           # random weights, nothing is downloaded

Reads Pascal VOC folders (what LabelImg writes), COCO JSON and VGG Image Annotator's files, and takes the photos with
exactly one object. First the new heads train over a frozen base, then all of the network. Photos are squeezed to the
base's size; augmentation moves the boxes with the pixels. The test split is looked at once, at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import fit, optim, plot, report, sharding, train
from cnnjax.data import augment, box_augment, one_object, pipeline
from cnnjax.data.one_object import Examples
from cnnjax.tasks import classify, localize, predict, serve, transfer
from cnnjax.types import Batch, Key, PyTree
from cnnjax.weights import preprocess


@dataclass(frozen=True)
class Config:
    """What to train on what."""

    dataset: Path = Path("animals")
    """A Pascal VOC folder, COCO JSON file or VIA file; with splits train, val and test if it names such."""
    test_fraction: float = 0.2
    """Of the photos, drawn from each class, where the data set has no split test."""
    valid_fraction: float = 0.15
    """Of the others, where it has no split val."""
    weights: str = "mobilenet_v1_0.75_224.keras"
    """A tag of cnnjax.weights.published(): the base."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""

    box_maps: int | None = 64
    """Maps that the box head reduces the last map to; None: it sees the pooled features, as in the chapter."""
    box_loss: localize.BoxLoss = "giou"
    """mse of (cx, cy, √w, √h) (the chapter's), smooth_l1 of the same, giou."""
    class_weight: float = 0.8
    """Of the cross-entropy; the box loss has the rest of 1."""
    frozen_epochs: int = 10
    """Passes with only the heads training."""
    epochs: int = 120
    """Passes with all of the network training."""
    head_rate: float = 1e-3
    """Learning rate of the heads, of AdamW with a cosine in each of both."""
    base_rate: float = 5e-4
    """Learning rate of the base, likewise."""
    norm_momentum: float | None = 0.9
    """Of BatchNorm's running statistics; None: the publisher's. At 0.99 they lag behind a short fine-tuning."""
    frozen_norms: bool = False
    """BatchNorm keeps the statistics of the published data."""
    batch_size: int = 16
    """Photos per step, over all devices."""
    weight_decay: float = 0.05
    """On kernels."""
    clip_norm: float = 5.0
    """Global L2 norm that gradients are clipped to."""

    flip: bool = True
    """Mirror half of the photos."""
    zoom: float = 0.4
    """At most, as a fraction: 0.1 zooms by 0.9 … 1.1."""
    shift: float = 0.2
    """At most, in each direction, as a share of the image."""
    brightness: float = 0.2
    """At most, as a fraction."""
    contrast: float = 0.2
    """At most, as a fraction."""

    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given. Given again, the run goes on."""
    seed: int = 0
    """Of the heads' initial weights, order and augmentation."""
    log_every: int = 10
    """Steps between lines of training metrics."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; there is always one after each epoch."""
    smoke: bool = False
    """A small network with random weights and few photos, to see that everything works."""


FREE = ("run_dir", "file", "checkpoint_every")
SMOKE, SMOKE_PHOTOS = "mobilenet_v1_0.25_128.keras", 32


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    network: predict.Network
    model: localize.Localizer
    data: dict[str, Examples]
    plan: train.Plan
    variables: PyTree


def resolve(config: Config) -> Config:
    """Checks what can be checked at once, and makes ``--smoke`` small."""
    report.check_ranges(
        config,
        above_zero=("frozen_epochs", "epochs", "head_rate", "base_rate", "batch_size", "clip_norm", "log_every"),
        from_zero=("weight_decay", "shift", "seed", "checkpoint_every"),
        below_one=(
            "class_weight",
            "norm_momentum",
            "zoom",
            "brightness",
            "contrast",
            "test_fraction",
            "valid_fraction",
        ),
    )
    if config.smoke:
        config = replace(config, weights=SMOKE, file=None, frozen_epochs=1, epochs=1, batch_size=8, log_every=1)
    return replace(config, run_dir=report.run_folder(config.run_dir, f"localize-{config.dataset.stem}"))


def load_data(config: Config, size: int) -> dict[str, Examples]:
    """The splits "train", "valid" and "test"; says how many photos there are, and how many faults in their labels."""
    most = SMOKE_PHOTOS if config.smoke else None
    return one_object.splits(config.dataset, size, config.test_fraction, config.valid_fraction, most)


def build(config: Config) -> Experiment:
    """Model, data, plan and initial weights."""
    network = predict.network(config.weights, config.file, random=config.smoke, num_classes=None)
    network = network._replace(model=transfer.with_norm_momentum(network.model, config.norm_momentum))
    size = network.entry.image_size
    data = load_data(config, size)
    model = localize.Localizer(network.model, len(data["train"].classes), config.box_maps)
    fresh = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, size, size, 3), np.float32))
    variables = {name: {**tree, "base": network.variables[name]} for name, tree in fresh.items()}
    per_epoch = pipeline.steps_per_epoch(len(data["train"].labels), config.batch_size)
    heads = r"(head|box|box_reduce|box_weight)/.*"

    def cosine(rate: float, epochs: int) -> Callable:
        return optim.warmup_cosine(rate, epochs * per_epoch)

    norms = ((transfer.NORMS, None),) if config.frozen_norms else ()
    phases = (
        optim.Phase(
            "frozen",
            config.frozen_epochs * per_epoch,
            ((heads, cosine(config.head_rate, config.frozen_epochs)), (r"base/.*", None)),
        ),
        optim.Phase(
            "fine-tune",
            config.epochs * per_epoch,
            (
                (heads, cosine(config.head_rate, config.epochs)),
                *norms,
                (r"base/.*", cosine(config.base_rate, config.epochs)),
            ),
        ),
    )
    plan = train.Plan(
        loss_fn=localize.loss_fn(model, size, config.box_loss, (config.class_weight, 1 - config.class_weight)),
        phases=phases,
        optimizer=optim.adamw(config.weight_decay),
        steps_per_epoch=per_epoch,
        seed=config.seed,
        augment=augmentation(config, network),
        clip_norm=config.clip_norm,
    )
    return Experiment(network, model, data, plan, variables)


def augmentation(config: Config, network: predict.Network) -> Callable[[Key, Batch], Batch]:
    """(key, batch of uint8 images) → batch of what the base takes, boxes moved with the pixels."""
    ops: list[box_augment.Op] = [box_augment.random_flip_left_right] if config.flip else []
    if config.zoom or config.shift:
        pixels = config.shift * network.entry.image_size
        ops.append(partial(box_augment.random_affine, max_change=config.zoom, max_pixels=pixels, fill=0.5))
    if config.brightness:
        ops.append(box_augment.on_image(partial(augment.random_brightness, max_change=config.brightness)))
    if config.contrast:
        ops.append(box_augment.on_image(partial(augment.random_contrast, max_change=config.contrast)))

    def apply(key: Key, batch: Batch) -> Batch:
        masks = np.ones((len(batch["label"]), 1), bool)
        images, boxes, kept = box_augment.per_example(
            box_augment.compose(*ops), key, classify.unit(batch["image"]), batch["box"][:, None], masks
        )
        prepared = preprocess(255 * images, network.entry.preprocess)
        return {"image": prepared, "label": batch["label"], "box": boxes[:, 0], "valid": kept[:, 0].astype(np.float32)}

    return apply


def main(config: Config) -> dict[str, float]:
    """Trains, looks at the test split once, writes the report; returns the summary."""
    sharding.start()
    config = resolve(config)
    mesh = sharding.make_mesh()
    sharding.check_batch(config.batch_size, mesh)
    experiment = build(config)
    data, size = experiment.data, experiment.network.entry.image_size
    prepare = partial(preprocess, mode=experiment.network.entry.preprocess)
    facts = {**{part: len(found.labels) for part, found in data.items()}, "classes": list(data["train"].classes)}
    step = train.make_eval_step(localize.eval_fn(experiment.model, prepare, size), mesh)

    def score(variables: PyTree, part: str) -> dict[str, float]:
        batches = pipeline.array_eval_batches(data[part].arrays(), config.batch_size)
        return localize.figures(train.evaluate(step, variables, batches, mesh), data[part].classes, f"{part}/")

    def batches(start: int) -> Iterator[Batch]:
        return pipeline.array_batches(data["train"].arrays(), config.batch_size, config.seed, start)

    with report.Run(config.run_dir, config, facts, FREE) as run:
        transfer.show_plan(experiment.plan, experiment.variables["params"], run)
        settings = fit.Settings(config.batch_size, config.log_every, config.checkpoint_every)
        for epoch in fit.epochs(experiment.plan, experiment.variables, batches, mesh, run, settings):
            scores = score(epoch.variables, "valid")
            epoch.report(scores, best="valid/both")
            variables = epoch.variables
        summary = {**score(variables, "test"), **scores, "steps": experiment.plan.total_steps}
        if run.writes:
            plot.save(plot.curves(run.records()), run.dir / "curves.png")
            plot.save(picture(experiment, variables, prepare), run.dir / "boxes.png")
        run.finish(summary)
        head = {"box_maps": config.box_maps}
        card = serve.card(experiment.network, "localize", "squeeze", data["train"].classes, head)
        serve.save(run.dir, serve.Served(card, experiment.model, variables))
    conclude(config, data, summary)
    return summary


def picture(experiment: Experiment, variables: PyTree, prepare: classify.Preprocess) -> plot.Figure:
    """The first test photos with their true boxes and those that were predicted."""
    test, size = experiment.data["test"], experiment.network.entry.image_size
    images = test.images[:24]
    predict_boxes = jax.jit(localize.predict_fn(experiment.model, prepare, size))
    probabilities, boxes = jax.device_get(predict_boxes(variables, {"image": images}))
    chosen = probabilities.argmax(-1)
    both = np.stack([test.boxes[:24], boxes], axis=1)
    names = [*(f"true {name}" for name in test.classes), *test.classes]
    places = np.stack([test.labels[:24], len(test.classes) + chosen], axis=1)
    titles = [f"{test.classes[c]} {p[c]:.0%}" for c, p in zip(chosen, probabilities, strict=True)]
    return plot.boxed(list(images), list(both), list(places), names, titles)


def conclude(config: Config, data: dict[str, Examples], summary: dict[str, float]) -> None:
    """The closing table."""
    count = len(data["test"].labels)
    rows = {
        "photos": ", ".join(f"{part} {len(found.labels)}" for part, found in data.items()),
        "test accuracy": f"{summary['test/accuracy']:.2%} of {count}",
        "test mean IoU": f"{summary['test/iou']:.3f}",
        **{f"  {name}": f"{summary[f'test/iou/{name}']:.3f}" for name in data["test"].classes},
        "right class and IoU ≥ 0.5": f"{summary['test/both']:.2%}",
        "results in": str(config.run_dir),
    }
    report.table("result", [{"": name, " ": value} for name, value in rows.items()])


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
