"""Scores of a network on labelled images: top-1 and top-5 accuracy, the classes that it confuses, its worst mistakes.

    python experiments/evaluate.py imagenet/val --weights resnet50.torchvision    # folders named by WordNet id
    python experiments/evaluate.py imagenet2012 --split validation --data-dir tfds
    python experiments/evaluate.py photos --run runs/flowers                      # folders named as the run's classes
    python experiments/evaluate.py boxes --run runs/localize                      # annotations, as localize.py takes
    python experiments/evaluate.py camvid --run runs/segment-camvid --ignore 11   # images with masks
    python experiments/evaluate.py --smoke                                        # random weights, two photos

A folder may have only some of the network's classes; all of them compete. The run folder gets summary.json (``top1``
and ``top5`` are shares of 1, of ``count`` images), confusion.csv, worst.png and unreadable.json. To expect: the
percentages of ``cnnjax.weights.published()``, on ImageNet's 50,000 validation images. Runs of
localize.py, detect.py and segment.py get the figures of their task, and boxes.png or segmentation.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

from cnnjax import atomic, cli, experiment, plot, report, serving, settings, sharding, tasks, weights
from cnnjax.data import annotations, catalog, fingerprint, masked, screening, segmented, sources, targets, transforms
from cnnjax.data.formats import folders, split_folders, tfds
from cnnjax.data.formats.mask_folders import NoMasksError
from cnnjax.metrics import classification
from cnnjax.tasks import classify
from cnnjax.types import Batch, PyTree, Rows, Sums, UserError

Names = Sequence[tuple[str, str]]
"""(WordNet id or nothing, name) of each class."""


@dataclass(frozen=True)
class Config:
    """Labelled images, and the network to evaluate on them."""

    dataset: Annotated[tyro.conf.Positional[str], settings.LOCATES] = ""
    """Folder with one sub-folder per class, or a tfds name (imagenet2012, imagenet_v2, …). Classes are named by
    WordNet id for published networks. For a run with boxes: annotations, as the run took them."""
    data_dir: Annotated[Path | None, settings.MAY_DIFFER] = None
    """Folder of tfds data sets; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    split: str | None = None
    """Split in tfds' syntax, for tfds data sets (None: validation), of annotations (None: all), or of a folder (None:
    its only one; test, of masks)."""
    batch_size: settings.PositiveInt = 64
    """Images per batch, over all devices."""

    ignore: tuple[settings.NonNegativeInt, ...] = ()
    """Values of masks that are no class, beside 255."""

    network: tyro.conf.OmitArgPrefixes[settings.Network] = settings.Network()
    test_time: tyro.conf.OmitArgPrefixes[settings.TestTime] = settings.TestTime()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


SMOKE_EXAMPLES = 16
MOST_SHOWN = 20  # mistakes in the figure, pairs in the table


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    if not config.dataset and not config.output.smoke:
        raise UserError("give the images: a folder with sub-folders named by WordNet id, or the name of a data set")
    if config.output.smoke and not config.network.run:
        config = settings.change(config, weights=settings.SMOKE, file=None)
    return experiment.resolve(config, f"evaluate-{Path(config.dataset).name or 'smoke'}-{config.network.title}")


def load_data(config: Config, names: Names, channels: int) -> sources.Source:
    """Images whose labels are indices of the network's classes."""
    keys = tuple(wnid or name for wnid, name in names)
    if not config.dataset:
        from sklearn.datasets import load_sample_images  # costs most of a second

        paths = tuple(Path(name) for name in load_sample_images().filenames)
        truth = np.array([keys.index("n03877845"), keys.index("n11939491")], np.int32)  # palace, daisy
        return folders.Folder(paths, truth, keys, channels)
    if catalog.is_folder(config.dataset):
        source: Any = folders.Folder.open(split_of(Path(config.dataset).expanduser(), config.split), channels)
    else:
        source = tfds.tfds_split(config.dataset, config.split or "validation", tfds.tfds_directory(config.data_dir))
    source = sources.Relabelled(source, places(source.classes, names, config.dataset), keys)
    return sources.Subset(source, np.arange(min(len(source), SMOKE_EXAMPLES))) if config.output.smoke else source


def split_of(root: Path, split: str | None) -> Path:
    """Folder of a split, or ``root`` where its folders are classes.

    Raises:
      UserError: it has splits, and none or another is chosen.
    """
    there = split_folders.find(root)
    if "all" in there:
        return there["all"]
    if split not in there:
        raise UserError(f"{root} has the splits {', '.join(there)}: choose one of them by --split")
    return there[split]


def places(classes: Sequence[str], names: Names, dataset: str) -> np.ndarray:
    """Index of each class of a data set among a network's: by WordNet ids, by names, or all names in their order.

    Raises:
      UserError: a class is not one of the network's; the message names such classes.
    """
    if tuple(classes) == tuple(name for _, name in names):
        return np.arange(len(classes))
    keys = {wnid or name: place for place, (wnid, name) in enumerate(names)}
    if unknown := [each for each in classes if each not in keys]:
        raise UserError(
            f"{dataset}: expected classes called as the network's {len(names)}, such as {next(iter(keys))}, got "
            f"{', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''} ({len(unknown)} of {len(classes)} unknown)"
        )
    return np.array([keys[each] for each in classes])


def evaluate(served: serving.Served, source: sources.Lenient, batch_size: int) -> dict[str, np.ndarray]:
    """Rows of the task (label, predicted, confidence, rank, loss) and ``readable``, for every image.

    Raises:
      UserError: a loss is not finite.
    """
    task = served.task

    def compute(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        _, rows = task.eval_fn(variables, batch)
        return {}, {**rows, "readable": batch["readable"]}

    rows = experiment.rows(compute, served.variables, source, batch_size)
    if not np.isfinite(rows["loss"]).all():
        raise UserError("the network gives NaN or infinity: its weights are damaged")
    return rows


def write(folder: Path, names: Names, rows: dict[str, np.ndarray], errors: Sequence[str]) -> None:
    """Writes confusion.csv and unreadable.json."""
    header = ("true", "true_name", "predicted", "predicted_name", "images")
    cells = [(*names[true], *names[predicted], n) for true, predicted, n in classification.confused(rows)]
    atomic.write_csv(folder / "confusion.csv", header, cells)
    atomic.write_json(folder / "unreadable.json", list(errors))


def worst(source: sources.Source, names: Names, rows: dict[str, np.ndarray]) -> plot.Figure:
    """Figure of the wrong predictions with the highest losses; ``source`` has an image for each row."""
    wrong = np.flatnonzero(rows["rank"] > 0)
    chosen = wrong[np.argsort(-rows["loss"][wrong], kind="stable")][:MOST_SHOWN]
    titles = [
        f"predicted {names[rows['predicted'][i]][1][:22]} {rows['confidence'][i]:.0%}\n"
        f"is {names[rows['label'][i]][1][:24]} {np.exp(-rows['loss'][i]):.1%}"
        for i in chosen
    ]
    return plot.image_grid([source[int(i)]["image"] for i in chosen], titles, 4, 2.4, "the highest losses")


def show(
    config: Config, names: Names, summary: dict[str, Any], rows: dict[str, np.ndarray], errors: Sequence[str]
) -> None:
    """Prints the tables, and on stderr the images that could not be read."""
    if jax.process_index():
        return
    pairs = [row for row in classification.confused(rows) if row[0] != row[1]][:MOST_SHOWN]
    report.table("most confused", [{"is": names[t][1], "taken for": names[p][1], "images": n} for t, p, n in pairs])
    entry = None if not config.network.of_publisher else weights.published()[config.network.weights]
    scores = [
        {
            "": f"top-{k}",
            "correct": f"{summary[f'top{k}_correct']} of {summary['count']}",
            "here": f"{summary[f'top{k}']:.2%}",
            **({} if entry is None else {"published, 50,000 images": f"{getattr(entry, f'top{k}')} %"}),
        }
        for k in (1, 5)
    ]
    report.table("RANDOM WEIGHTS: these figures mean nothing" if config.output.smoke else config.network.title, scores)
    print(f"results in {config.output.run_dir}")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)


class Examples(NamedTuple):
    """Examples with the truth for a task, how they are prepared, and the faults that were found in their labels."""

    source: sources.Source
    prepare: transforms.Transform
    faults: int = 0


def with_boxes(config: Config, card: serving.Card) -> Examples:
    """Annotated images, for a task about boxes."""
    found = annotations.open(Path(config.dataset), config.split, classes=card.classes)
    objects = tasks.named(card.task).OBJECTS
    found = found if objects is None else annotations.with_object_count(found, objects)
    prepare = transforms.chain(card.transform(), targets.padding({"images": annotations.AnnotatedImages(found)}))
    return Examples(annotations.AnnotatedImages(found), prepare, len(found.faults))


def with_masks(config: Config, card: serving.Card) -> Examples:
    """Images with masks, or annotations with outlines, whose classes are those of the network.

    Raises:
      UserError: no such split, or other classes.
    """
    root = Path(config.dataset).expanduser()
    try:
        parts = segmented.folder_parts(root, card.classes, config.ignore)
    except NoMasksError:
        found = annotations.open(root, config.split, classes=card.classes[1:])
        return Examples(masked.Outlined(annotations.AnnotatedImages(found)), card.transform(), len(found.faults))
    split = config.split or ("all" if "all" in parts else "test")
    if split not in parts:
        raise UserError(f"{root} has the splits {', '.join(parts)}: choose one of them by --split")
    return Examples(parts[split], card.transform())


def evaluate_task(config: Config, card: serving.Card) -> dict[str, Any]:
    """Evaluates a run whose task is not classification, and writes the report; returns the summary."""
    if card.task == "super_resolve":
        raise UserError(f"{config.network.title} enlarges photos: super_resolution.py scores it on its test split")
    ways, about_masks = config.test_time.options(card.task), card.task == "segment"
    examples = (with_masks if about_masks else with_boxes)(config, card)
    data, bad = screening.usable(examples.source, experiment.checks())
    source, served = sources.Mapped(data, examples.prepare), config.network.load()
    mesh = experiment.mesh(config.batch_size)
    with experiment.opened(config, {"images": len(source), "data": fingerprint.of_source(source)}) as run:
        score = experiment.scorer(card.make_task(served.model, **ways), mesh, config.batch_size)
        outcome = score(sharding.place(served.variables, mesh), source, "")
        summary = {name.removeprefix("/"): x for name, x in outcome.figures.items()}
        summary |= {"count": len(source), "faults": examples.faults, "unreadable": len(bad)}
        run.finish(summary)
        name = "segmentation.png" if about_masks else "boxes.png"
        drawings: experiment.Drawings = {name: lambda: experiment.examples(served, source)}
        if about_masks:
            drawings |= {"confusion.png": lambda: plot.confusion(outcome.sums["confusion"], card.classes)}
        experiment.draw(run, drawings)
        experiment.conclude(run, {name: f"{x:.4g}" for name, x in summary.items()})
    for error in bad:
        print(f"left out: {error}", file=sys.stderr)
    return summary


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints the tables, writes the report; returns the summary."""
    config = resolve(config)
    card = config.network.card(random=config.output.smoke)
    if tasks.named(card.task).task is not classify.task:
        return evaluate_task(config, card)
    config.test_time.options(card.task)  # an error if any is asked for
    names = [classify.named(each) for each in card.classes]
    data, bad = screening.usable(load_data(config, names, card.channels), experiment.checks())
    blank = {"image": np.zeros(card.shape, np.uint8), "label": np.int32(0)}
    source = sources.Lenient(sources.Mapped(data, card.transform()), blank)  # images of no files may still be damaged
    served = config.network.load(random=config.output.smoke)
    with experiment.opened(config, {"images": len(source), "data": fingerprint.of_source(source)}) as run:
        rows = evaluate(served, source, config.batch_size)
        readable = rows.pop("readable")
        errors = [*bad, *source.errors(readable)]
        rows = {name: x[readable] for name, x in rows.items()}
        summary = {**classification.top_figures(rows), "unreadable": len(errors)}
        if run.writes:
            write(run.dir, names, rows, errors)
        run.finish(summary)
        if (rows["rank"] > 0).any():
            shown = sources.Subset(source, np.flatnonzero(readable))
            experiment.draw(run, {"worst.png": lambda: worst(shown, names, rows)})
    show(config, names, summary, rows, errors)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
