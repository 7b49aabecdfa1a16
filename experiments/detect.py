"""Object detection: the class of every object in an image, and the box around it, in one look (YOLO, SSD).

    python experiments/detect.py --dataset path/to/voc --file mobilenet_v2_features.safetensors   # see docs/results.md
    python experiments/detect.py --dataset coco/2017 --data-dir PATH --scales 320 608             # multi-scale
    python experiments/detect.py --dataset path/to/voc --head ssd --view ssd
    python experiments/detect.py --dataset path/to/voc --tree tree.json --labelled path/to/class_folders  # YOLO9000
    python experiments/detect.py --dataset path/to/voc --smoke          # random weights, nothing is downloaded

Reads Pascal VOC, COCO, VIA and YOLO files, and tfds' voc and coco (docs/data.md). The head over any published
classifier is YOLOv3's, whose anchors are the k-means of the training boxes, or SSD's. First the new layers train over a
frozen base, then all of the network; the weights with the best mAP on the validation split are kept. The test split is
evaluated once, at the end, in the pixels of the files: summary.json has ``test/map50``, COCO's figures and the AP of
each class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import cli, experiment, models, plot, report, serving, settings, train
from cnnjax.data import catalog, joint, pipeline, sources, splits, targets, transforms
from cnnjax.data.sources import Source
from cnnjax.metrics import detection
from cnnjax.models.detection import ssd, yolo
from cnnjax.ops import anchors
from cnnjax.tasks import detect, transfer
from cnnjax.types import PyTree, Task, UserError


@dataclass(frozen=True)
class Config:
    """Data, base, grids and training."""

    dataset: Annotated[str, settings.LOCATES] = "voc/2007"
    """Annotations of Pascal VOC, COCO, VIA or YOLO, a folder or a file; or a tfds data set with boxes."""
    split: str | None = None
    """The only one of its splits, lists or files to take, which is then cut."""
    size: settings.Pixels = 416
    """Height and width of the images that the network sees, a multiple of 32; they are squeezed to it."""
    batch_size: settings.PositiveInt = 8
    """Images per step, over all devices."""

    phases: tuple[settings.Phase, ...] = (
        settings.Phase("frozen", 3, train_from="head", schedule="cosine"),
        settings.Phase("fine-tune", 40, base_factor=0.5, schedule="cosine"),
    )
    """Phases of training."""

    head: Literal["yolo", "ssd"] = "yolo"
    """YOLOv3's grids or SSD's default boxes, with the flags of its group."""
    yolo: tyro.conf.OmitArgPrefixes[settings.YOLOHead] = settings.YOLOHead()
    ssd: tyro.conf.OmitArgPrefixes[settings.SSDHead] = settings.SSDHead()

    base: tyro.conf.OmitArgPrefixes[settings.Base] = settings.Base("mobilenet_v2.torchvision")
    joint: tyro.conf.OmitArgPrefixes[settings.Joint] = settings.Joint()
    images: tyro.conf.OmitArgPrefixes[settings.DetectionImages] = settings.DetectionImages()
    tuning: tyro.conf.OmitArgPrefixes[settings.FineTuning] = settings.FineTuning(weight_decay=0.01, clip_norm=20.0)
    test_time: tyro.conf.OmitArgPrefixes[settings.TestTime] = settings.TestTime()
    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()
    loop: tyro.conf.OmitArgPrefixes[settings.Loop] = settings.Loop(keep="best")
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


SMOKE_SIZE = 96


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    config = experiment.resolve(config, f"detect-{config.dataset.rstrip('/').rsplit('/', 1)[-1]}")
    config = replace(config, phases=config.tuning.phases(config.phases))
    other = config.ssd if config.head == "yolo" else config.yolo
    unused = [name for name, value in vars(other).items() if value != getattr(type(other)(), name)]
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UserError(f"--head {config.head} has no {flags}: leave out, or choose the other head")
    if config.joint.asked and (config.head == "ssd" or config.images.mosaic):
        raise UserError("--tree, --labelled and --without-boxes want --head yolo and no --mosaic")
    if config.head == "yolo":
        config.yolo.check(config.size)
    else:
        config.ssd.check()
    if not config.output.smoke:
        return config
    yolo = replace(config.yolo, grid_features=(16,) * len(config.yolo.grid_strides))
    ssd = replace(config.ssd, extra_features=(16,) * len(config.ssd.extra_features))
    return replace(experiment.smoke(config, batch_size=8), size=SMOKE_SIZE, yolo=yolo, ssd=ssd)


class Experiment(NamedTuple):
    """Everything that ``build`` derives from a Config."""

    files: splits.Splits
    splits: splits.Splits
    card: serving.Card
    clusters: anchors.Clusters | None  # anchors of YOLO
    task: Task
    model: yolo.YOLO | ssd.SSD
    plan: train.Plan
    variables: PyTree
    tested: Task  # as at the end: with the ways of --test-…


def build(config: Config) -> Experiment:
    """Data, anchors, model, task, plan and initial weights."""
    network = config.base.network(random=config.output.smoke)
    files = load_data(config)
    found = prepared(config, files)
    classes, per_epoch = files.train.classes, pipeline.steps_per_epoch(len(files.train), config.batch_size)
    network = config.base.tuned(network, per_epoch)
    head: settings.YOLOHead | settings.SSDHead
    if config.head == "yolo":
        head, clusters = config.yolo, config.yolo.clusters(box_sizes(config.size, files.train), config.loop.seed)
        report.say(f"{len(clusters.sizes)} anchors by k-means: average IoU {clusters.average_iou:.3f}")
        fields = {**head.fields(clusters.sizes), "parents": joint.parents(files.train)}
        new = {"momentum": max(1 - 2 / per_epoch, transfer.LEAST_MOMENTUM)}
    else:
        head, clusters, fields, new = config.ssd, None, config.ssd.fields(config.size), {}
    model = models.create(head.model, base=network.model, num_classes=len(classes), **new, **fields)
    variables = transfer.variables(model, network.variables, jax.random.key(config.loop.seed))
    variables = experiment.initial(config.loop, model, variables, (config.size, config.size, 3))
    task = detect.task(model, network.prepare, classes, **head.of_task)
    ways = config.test_time.options("detect")
    tested = detect.task(model, network.prepare, classes, **ways) if ways else task
    augment = experiment.augmentation(config.images.op(), network.prepare)
    plan = config.tuning.plan(task, network.model, config.phases, per_epoch, config.loop.seed, augment)
    card = serving.card(network.entry, "detect", "squeeze", classes)
    base = (network.entry.model, dict(network.entry.fields))
    card = replace(card, model=head.model, fields={"base": base, **fields}, image_size=config.size)
    return Experiment(files, found, card, clusters, task, model, plan, variables, tested)


def load_data(config: Config) -> splits.Splits:
    """Splits of the images with boxes, as their files have them."""
    reading = config.reading
    found = catalog.load_boxes(config.dataset, reading.data_dir, fractions=reading.fractions(), split=config.split)
    found = config.joint.splits(found)
    return experiment.load(found, reading, None, smoke=config.output.smoke, keep=tuple(found.given))


def prepared(config: Config, files: splits.Splits) -> splits.Splits:
    """Splits with training images as they are, the others squeezed, and their boxes padded."""
    parts = {part: each for part, each in files.given.items() if part != "train"}
    pad, squeeze = targets.padding(parts), transforms.squeeze(config.size)
    ready = {part: sources.Mapped(each, lambda example: pad(squeeze(example))) for part, each in parts.items()}
    limit = config.reading.in_memory_bytes
    return replace(files, **{part: sources.in_memory_if_small(each, limit) for part, each in ready.items()})


def box_sizes(size: int, source: Source) -> np.ndarray:
    """Width and height of every box, [n, 2], in pixels of images squeezed to ``size``."""
    sizes = [
        (each["boxes"][:, 2:] - each["boxes"][:, :2]) * size / each["size"][::-1] for each in targets.truths(source)
    ]
    return np.concatenate(sizes)


def on_files(
    built: Experiment, source: Source, rows: Mapping[str, np.ndarray]
) -> tuple[detect.Objects, detect.Objects]:
    """Truths and predictions of a split in the pixels of its files."""
    truths, (_, predictions) = targets.truths(source), detect.listed(rows)
    restore = built.card.transform().restore
    for truth, each in zip(truths, predictions, strict=True):
        each["boxes"] = restore(each["boxes"], *truth["size"])
    return truths, predictions


def main(config: Config) -> dict[str, float]:
    """Trains the detector, evaluates it on the test split (or valid), writes the report; returns the summary."""
    config = resolve(config)
    mesh = experiment.mesh(config.batch_size, tune_malloc=config.loop.tune_malloc)
    built = build(config)
    train_split, valid, (last, test) = built.splits.train, built.splits.valid, built.splits.last
    batches = config.images.batches(
        config.reading, train_split, config.batch_size, config.loop.seed, config.size, "squeeze"
    )
    score = experiment.scorer(built.task, mesh, config.batch_size, config.reading.threads)
    with experiment.opened(config, built.splits) as run:
        experiment.show_plan(built.plan, built.variables["params"], run)
        variables, scores = experiment.trained(
            built.plan, built.variables, batches, valid, score, mesh, run, config.loop, config.batch_size
        )
        if built.tested is not built.task:
            score = experiment.scorer(built.tested, mesh, config.batch_size, config.reading.threads)
        rows = score(variables, test, last).rows
        truths, predictions = on_files(built, built.files.last[1], rows)
        figures = {**detect.precision(truths, predictions, test.classes), **detection.coco_map(truths, predictions)}
        summary = {f"{last}/{name}": x for name, x in figures.items()}
        summary |= scores
        if built.clusters:
            summary["anchors/average_iou"] = built.clusters.average_iou
        served = serving.Served(built.card, built.model, variables)
        experiment.finish(run, summary, served, drawings(config, built, served, rows))
        by_class = {name: f"{x:.3f}" for name in test.classes if (x := figures.get(f"ap50/{name}")) is not None}
        facts = {
            "photos": ", ".join(f"{part} {len(source)}" for part, source in built.splits.given.items()),
            f"{last} mAP at IoU 0.5": f"{figures['map50']:.3f}",
            **{f"  {name}": x for name, x in by_class.items()},
            f"{last} AP, IoU 0.50 … 0.95": f"{figures['ap']:.3f}",
        }
        experiment.conclude(run, facts)
    return summary


def drawings(
    config: Config, built: Experiment, served: serving.Served, rows: Mapping[str, np.ndarray]
) -> experiment.Drawings:
    """Figures of the run by file name."""
    test, classes = built.splits.last[1], built.splits.train.classes
    truths, predictions = detect.listed(rows)

    def curves() -> plot.Figure:
        found = detection.voc_curves(truths, predictions)
        series = {classes[label]: (curve.recall, curve.precision) for label, curve in found.items()}
        return plot.lines(series, "recall", "precision at IoU 0.5")

    def mistakes(kind: str) -> plot.Figure:
        worst = [each for each in detect.mistakes(truths, predictions, classes) if each.kind == kind]
        pictures = [each.picture(test[each.image]["image"]) for each in worst[: experiment.PICTURED]]
        return plot.pictures(pictures, suptitle=f"{len(worst)} {kind}s")

    figures: experiment.Drawings = {
        "boxes.png": lambda: experiment.examples(served, test),
        "precision_recall.png": curves,
        "misses.png": lambda: mistakes("miss"),
        "false_alarms.png": lambda: mistakes("false alarm"),
    }
    if clusters := built.clusters:
        figures |= {"anchors.png": lambda: plot.anchors(box_sizes(config.size, built.files.train), clusters.sizes)}
    return figures


if __name__ == "__main__":
    cli.main(main, Config)
