"""Classification with localization: the class of the one object in an image, and the box around it.

    python experiments/localize.py --dataset path/to/voc --class-weight 0.5      # as in docs/results.md
    python experiments/localize.py --dataset path/to/coco.json --box-loss giou
    python experiments/localize.py --dataset path/to/voc --smoke           # random weights, nothing is downloaded

Reads Pascal VOC, COCO, VGG Image Annotator's files and YOLO's (docs/data.md), and takes the images with exactly one
object. First the new heads train over a frozen base, then all of the network. Images are squeezed to the base's size;
augmentation moves the boxes with the pixels. The test split is evaluated once, at the end.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import tyro

from cnnjax import cli, experiment, pretrained, serving, settings, train
from cnnjax.data import catalog, pipeline, transforms
from cnnjax.tasks import localize, transfer
from cnnjax.types import PyTree, Task


@dataclass(frozen=True)
class Config:
    """Data, base and training."""

    dataset: Annotated[Path, settings.LOCATES] = Path("animals")
    """Annotations of Pascal VOC, COCO, VIA or YOLO, a folder or a file; its own splits are used where it has them."""
    split: str | None = None
    """The only one of its splits, lists or files to take, which is then cut."""

    box_features: settings.PositiveInt | None = 64
    """Channels that the box head reduces the last feature map to; None: it takes pooled features, as in the chapter."""
    box_loss: localize.BoxLoss = "giou"
    """mse or smooth_l1 of (cx, cy, √w, √h), mse as in the chapter; or giou of the boxes."""
    class_weight: settings.Fraction = 0.8
    """Weight of the cross-entropy; that of the box loss is 1 minus it."""
    phases: tuple[settings.Phase, ...] = (
        settings.Phase("frozen", 10, train_from="head", schedule="cosine"),
        settings.Phase("fine-tune", 120, base_factor=0.5, schedule="cosine"),
    )
    """Phases of training."""
    batch_size: settings.PositiveInt = 16
    """Images per step, over all devices."""

    base: tyro.conf.OmitArgPrefixes[settings.Base] = settings.Base("mobilenet_v1_0.75_224.keras", norm_momentum=0.9)
    augmentation: tyro.conf.OmitArgPrefixes[settings.Augmentation] = settings.Augmentation(
        flip=True, zoom=0.4, shift=0.2, brightness=0.2, contrast=0.2
    )
    tuning: tyro.conf.OmitArgPrefixes[settings.FineTuning] = settings.FineTuning(weight_decay=0.05, clip_norm=5.0)
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop(keep="best")
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"localize-{config.dataset.stem}")
    config = replace(config, phases=config.tuning.phases(config.phases))
    return experiment.smoke(config, batch_size=8) if config.output.smoke else config


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    splits: catalog.Splits
    network: pretrained.Network
    model: localize.Localizer
    task: Task
    plan: train.Plan
    variables: PyTree


def load_data(config: Config, size: int) -> catalog.Splits:
    """Splits of images with one object, squeezed to ``size``; prints the number of images and of faults in labels."""
    fractions = config.reading.test_fraction, config.reading.valid_fraction
    splits = catalog.load_annotated(config.dataset, *fractions, localize.OBJECTS, config.split, usual=0.2)
    return experiment.load(splits, config.reading, transforms.squeeze(size), smoke=config.output.smoke)


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    network = config.base.network(random=config.output.smoke)
    splits = load_data(config, network.entry.image_size)
    classes = splits.train.classes
    per_epoch = pipeline.steps_per_epoch(len(splits.train), config.batch_size)
    network = config.base.tuned(network, per_epoch)
    model = localize.Localizer(network.model, len(classes), config.box_features)
    variables = transfer.variables(model, network.variables, jax.random.key(config.loop.seed))
    variables = experiment.initial(config.loop, model, variables, network.model.image_shape)
    loss = {"box_loss": config.box_loss, "weights": (config.class_weight, 1 - config.class_weight)}
    task = localize.task(model, network.prepare, classes, **loss)
    op = config.augmentation.op(network.entry.image_size, fill=0.5)
    augment = experiment.augmentation(op, network.prepare)
    plan = config.tuning.plan(task, network.model, config.phases, per_epoch, config.loop.seed, augment)
    return Experiment(splits, network, model, task, plan, variables)


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates the test split (or valid, if there is none), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    train_split, valid, (last, test) = built.splits.train, built.splits.valid, built.splits.last
    batches = config.reading.batches(train_split, config.batch_size, config.loop.seed)
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, valid, score, mesh, run, config.loop, config.batch_size
        )
        summary = {**score(variables, test, last).figures, **scores}
        head = {"box_features": config.box_features}
        card = serving.card(built.network.entry, "localize", "squeeze", test.classes, head)
        served = serving.Served(card, built.model, variables)
        experiment.finish(run, summary, served, {"boxes.png": lambda: experiment.examples(served, test)})
        facts = {
            "photos": ", ".join(f"{part} {len(source)}" for part, source in built.splits.given.items()),
            f"{last} accuracy": f"{summary[f'{last}/accuracy']:.2%} of {len(test)}",
            f"{last} mean IoU": f"{summary[f'{last}/iou']:.3f}",
            **{
                f"  {name}": f"{x:.3f}" for name in test.classes if (x := summary.get(f"{last}/iou/{name}")) is not None
            },
            "right class and IoU ≥ 0.5": f"{summary[f'{last}/localization_accuracy']:.2%}",
        }
        experiment.conclude(run, facts)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
