"""Semantic segmentation: the class of every pixel (FCN, DeepLab, U-Net).

    python experiments/segment.py --dataset path/to/camvid --ignore 11 --file mobilenet_v2_features.safetensors
    python experiments/segment.py --dataset path/to/folder --skips 32                 # FCN-32s; then, from its weights:
    python experiments/segment.py --dataset path/to/folder --skips 32 16 --continue-from RUN --continue-with weights
    python experiments/segment.py --dataset path/to/folder --smoke                    # random weights, no download

Reads images beside masks (docs/data.md): CamVid's folders, Pascal VOC's, ``images`` and ``masks``; COCO's outlines; two
data sets of tfds. FCN stands over any
published classifier: scores of its maps of strides 32, 16 and 8 are added and upsampled by transposed convolutions that
start as bilinear interpolation. First these new layers train over a frozen base, then all of the network; the weights
with the best mean IoU on the validation split are kept. The test split is evaluated once, at the end: summary.json has
``test/miou``, the IoU of each class, accuracies and the boundary F1 score.
"""

from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import cli, experiment, models, plot, pretrained, serving, settings, train
from cnnjax.data import pipeline, segmented, sources, splits
from cnnjax.metrics import segmentation
from cnnjax.models.segmentation import fcn
from cnnjax.tasks import segment, transfer
from cnnjax.types import PyTree, Task, UserError


@dataclass(frozen=True)
class Config:
    """Data, base, loss and training."""

    dataset: Annotated[str, settings.LOCATES] = "camvid"
    """Folder of images and masks, annotations with outlines (COCO), or oxford_iiit_pet or cityscapes of tfds."""
    classes: tuple[str, ...] = ()
    """Names of a folder's classes 0, 1, …; none: those in its classes.txt, else the values of the masks."""
    ignore: tuple[settings.NonNegativeInt, ...] = ()
    """Values of a folder's masks that are no class, beside 255."""
    size: tuple[settings.Pixels, settings.Pixels] | None = None
    """Height and width that images are padded to for evaluation; None: the largest of the data set."""
    batch_size: settings.PositiveInt = 8
    """Images per step, over all devices."""

    phases: tuple[settings.Phase, ...] = (
        settings.Phase("frozen", 2, train_from="head", schedule="cosine"),
        settings.Phase("fine-tune", 30, base_factor=0.5, schedule="cosine"),
    )
    """Phases of training."""

    skips: tuple[settings.PositiveInt, ...] = (32, 16, 8)
    """Total strides of the base's maps that are scored, coarse to fine: 32; 32 16; 32 16 8 are FCN-32s, -16s, -8s."""
    base: tyro.conf.OmitArgPrefixes[settings.Base] = settings.Base("mobilenet_v2.torchvision")
    loss: tyro.conf.OmitArgPrefixes[settings.PixelLoss] = settings.PixelLoss()
    images: tyro.conf.OmitArgPrefixes[settings.SegmentationImages] = settings.SegmentationImages()
    tuning: tyro.conf.OmitArgPrefixes[settings.FineTuning] = settings.FineTuning(weight_decay=0.01, clip_norm=5.0)
    test_time: tyro.conf.OmitArgPrefixes[settings.TestTime] = settings.TestTime()
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop(keep="best")
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


SMOKE_CROP = (64, 64)


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"segment-{config.dataset.rstrip('/').rsplit('/', 1)[-1]}")
    config = replace(config, phases=config.tuning.phases(config.phases))
    if any(coarse <= fine or coarse % fine for coarse, fine in zip(config.skips, config.skips[1:], strict=False)):
        raise UserError(f"--skips {' '.join(map(str, config.skips))}: give strides, coarse to fine, such as 32 16 8")
    if not config.output.smoke:
        return config
    return replace(experiment.smoke(config, batch_size=8), images=replace(config.images, crop=SMOKE_CROP))


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    splits: splits.Splits
    card: serving.Card
    task: Task
    model: fcn.FCN
    plan: train.Plan
    variables: PyTree
    tested: Task  # as at the end: with the ways of --test-…


def build(config: Config) -> Experiment:
    """Data, model, task, plan and initial weights."""
    network = config.base.network(random=config.output.smoke)
    reading = config.reading
    files = segmented.load(config.dataset, config.classes, config.ignore, reading.fractions(), reading.data_dir)
    card = card_of(config, network.entry, files)
    found = experiment.load(files, config.reading, card.transform(), smoke=config.output.smoke, keep=("train",))
    classes, per_epoch = found.train.classes, pipeline.steps_per_epoch(len(found.train), config.batch_size)
    network = config.base.tuned(network, per_epoch)
    model = models.create(card.model, base=network.model, num_classes=len(classes), skips=config.skips)
    variables = transfer.variables(model, network.variables, jax.random.key(config.loop.seed))
    variables = initial(config, model, variables, card)
    options = {"class_weights": config.loss.weights(found.train), "focus": config.loss.focus, "dice": config.loss.dice}
    task = segment.task(model, network.prepare, classes, **options)
    ways = config.test_time.options("segment")
    tested = segment.task(model, network.prepare, classes, **ways) if ways else task
    augment = experiment.augmentation(config.images.op(), network.prepare)
    plan = config.tuning.plan(task, network.model, config.phases, per_epoch, config.loop.seed, augment)
    return Experiment(found, card, task, model, plan, variables, tested)


def initial(config: Config, model: fcn.FCN, variables: PyTree, card: serving.Card) -> PyTree:
    """Variables that training starts from, as `experiment.initial`; also those of a run with fewer skips."""
    run = config.loop.continue_from
    if run is not None and config.loop.continue_with == "weights" and (run / serving.CARD).exists():
        skips = tuple(serving.load_card(run).fields.get("skips", ()))
        if skips and skips != config.skips and skips == config.skips[: len(skips)]:
            coarser = serving.load_variables(run, model.clone(skips=skips), card.shape)
            return fcn.refined(variables, coarser)
    return experiment.initial(config.loop, model, variables, card.shape)


def card_of(config: Config, entry: pretrained.Entry, files: splits.Splits) -> serving.Card:
    """Card of the network: its images are padded to ``--size``, or to the largest of the data set."""
    sizes = np.concatenate([segmented.sizes(source) for source in files.given.values()])
    size = config.size or tuple(sizes.max(0).tolist())
    card = serving.card(entry, "segment", "pad", files.train.classes)
    fields = {"base": (entry.model, dict(entry.fields)), "skips": config.skips}
    return replace(card, model="fcn8s_vgg16", fields=fields, size=size)


def main(config: Config) -> dict[str, float]:
    """Trains the segmenter, evaluates it on the test split (or valid), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    train_split, valid, (last, test) = built.splits.train, built.splits.valid, built.splits.last
    size = built.card.shape[:2]
    batches = config.images.batches(config.reading, train_split, config.batch_size, config.loop.seed, size)
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, valid, score, mesh, run, config.loop, config.batch_size
        )
        if built.tested is not built.task:
            score = experiment.scorer(built.tested, mesh, config.batch_size, config.reading.threads)
        outcome = score(variables, test, last)
        summary = {**outcome.figures, **scores}
        served = serving.Served(built.card, built.model, variables)
        experiment.finish(run, summary, served, drawings(built, served, test, outcome))
        ious = {name: summary.get(f"{last}/iou/{name}") for name in test.classes}
        facts = {
            "photos": ", ".join(f"{part} {len(source)}" for part, source in built.splits.given.items()),
            f"{last} mean IoU": f"{summary[f'{last}/miou']:.3f}",
            **{f"  {name}": f"{iou:.3f}" for name, iou in ious.items() if iou is not None},
            f"{last} pixel accuracy": f"{summary[f'{last}/pixel_accuracy']:.3f}",
            f"{last} boundary F1": f"{summary[f'{last}/boundary_f1']:.3f}",
        }
        experiment.conclude(run, facts)
    return summary


def drawings(
    built: Experiment, served: serving.Served, test: sources.Source, outcome: experiment.Outcome
) -> experiment.Drawings:
    """Figures of the run by file name."""
    classes = built.splits.train.classes

    def worst() -> plot.Figure:
        ious = [segmentation.figures({"confusion": each}, classes)["miou"] for each in outcome.rows["confusion"]]
        return experiment.examples(served, sources.Subset(test, np.argsort(ious, kind="stable")))

    return {
        "segmentation.png": lambda: experiment.examples(served, test),
        "worst.png": worst,
        "confusion.png": lambda: plot.confusion(outcome.sums["confusion"], classes),
    }


if __name__ == "__main__":
    cli.main(main, Config)
