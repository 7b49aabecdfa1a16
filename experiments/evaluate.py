"""Top-1 and top-5 of published weights on labelled images, what they confuse, and their worst mistakes.

    python experiments/evaluate.py imagenet/val --weights resnet50.torchvision    # folders named by WordNet id
    python experiments/evaluate.py imagenet2012 --split validation --data-dir tfds
    python experiments/evaluate.py --smoke                                        # random weights, two photos

A folder of some of the 1000 classes is compared over all 1000. The run folder gets summary.json (``top1`` and ``top5``
are shares of 1, of ``count`` images), confusion.csv, worst.png and unreadable.json. To expect: the percentages of
``cnnjax.weights.published()``, on ImageNet's 50,000 validation images.
"""

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from sklearn.datasets import load_sample_images

from cnnjax import plot, report, sharding
from cnnjax.data import catalog, sources
from cnnjax.metrics import classification
from cnnjax.tasks import classify, predict
from cnnjax.types import Array, Batch, PyTree, UserError
from cnnjax.weights import Published, labels


@dataclass(frozen=True)
class Config:
    """What to evaluate on what."""

    dataset: tyro.conf.Positional[str] = ""
    """A folder with one sub-folder per class, named by WordNet id, or a tfds name (imagenet2012, imagenet_v2, …)."""
    data_dir: Path | None = None
    """Where tfds data sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    split: str = "validation"
    """tfds split syntax, for tfds data sets."""
    weights: str = "resnet50.keras"
    """A tag of cnnjax.weights.published(): the network, its weights, and how its images are prepared."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""
    resize: predict.Resize = "crop"
    """crop: as the publisher, shorter side to a size, then the centre; squeeze: all of the image, its proportions
    lost; square: the largest central square."""
    batch_size: int = 64
    """Images at once, over all devices."""
    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given."""
    smoke: bool = False
    """A small network with random weights, at most 16 images, to see that everything works."""


SMOKE, SMOKE_EXAMPLES = "mobilenet_v1_0.25_128.keras", 16
MOST_SHOWN = 20  # mistakes in the picture, pairs in the table


def resolve(config: Config) -> Config:
    """Checks what can be checked at once, and makes ``--smoke`` small."""
    report.check_ranges(config, above_zero=("batch_size",))
    if not config.dataset and not config.smoke:
        raise UserError("give the images: a folder with sub-folders named by WordNet id, or the name of a data set")
    if config.smoke:
        config = replace(config, weights=SMOKE, file=None)
    name = f"evaluate-{Path(config.dataset).name or 'smoke'}-{config.weights}"
    return replace(config, run_dir=report.run_folder(config.run_dir, name))


def load_data(config: Config) -> sources.Source:
    """The images, their labels as places among ImageNet's 1000 classes."""
    if not config.dataset:
        paths = tuple(Path(name) for name in load_sample_images().filenames)
        index = labels.imagenet_index()
        truth = np.array([index["n03877845"], index["n11939491"]], np.int32)  # palace, daisy
        return sources.Folder(paths, truth, tuple(index))
    if catalog.is_folder(config.dataset):
        source: Any = sources.Folder.open(Path(config.dataset).expanduser())
    else:
        source = catalog.tfds_split(config.dataset, config.split, catalog.tfds_directory(config.data_dir))
    source = Relabelled(source, places(source.classes, config.dataset))
    return sources.Subset(source, np.arange(min(len(source), SMOKE_EXAMPLES))) if config.smoke else source


@dataclass(frozen=True)
class Relabelled:
    """``source`` with ``places[label]`` for each label."""

    source: sources.Source
    places: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """ImageNet's WordNet ids."""
        return tuple(labels.imagenet_index())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        return {**example, "label": int(self.places[example["label"]])}


def places(classes: Sequence[str], name: str) -> np.ndarray:
    """Where each class of a data set is among ImageNet's 1000: by WordNet ids, or as all 1000 names in their order.

    Raises:
      UserError: naming classes that are not there.
    """
    index = labels.imagenet_index()
    if tuple(classes) == tuple(name for _, name in labels.imagenet_classes()):
        return np.arange(len(classes))
    if unknown := [each for each in classes if each not in index]:
        raise UserError(
            f"{name}: expected classes named by WordNet ids of ImageNet's 1000, such as n01440764, got "
            f"{', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''} ({len(unknown)} of {len(classes)} unknown)"
        )
    return np.array([index[each] for each in classes])


def examine(network: predict.Network, source: predict.Marked, batch_size: int, mesh: Mesh) -> dict[str, np.ndarray]:
    """Of each image [n]: label (−1: unreadable), rank of the true class, loss in nats, what was predicted, how surely.

    Raises:
      UserError: a loss is not finite.
    """

    def compute(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits = network.logits(variables, batch["image"])
        true = jnp.maximum(batch["label"], 0)
        return {
            "label": batch["label"],
            "rank": classification.ranks(logits, true),
            "loss": classify.cross_entropy(logits, true),
            "predicted": logits.argmax(-1),
            "confidence": jax.nn.softmax(logits).max(-1),
        }

    said = predict.for_each(compute, network.variables, source, batch_size, mesh)
    if not np.isfinite(said["loss"]).all():
        raise UserError(f"{network.entry.tag} gives NaN or infinity: its weights are damaged")
    return said


def figures(said: dict[str, np.ndarray]) -> dict[str, float | int]:
    """Exact counts over the readable images, and what they divide to."""
    readable = said["label"] >= 0
    count, rank = int(readable.sum()), said["rank"][readable]
    correct, correct5 = int((rank < 1).sum()), int((rank < 5).sum())
    return {
        "top1": correct / count,
        "top5": correct5 / count,
        "count": count,
        "top1_correct": correct,
        "top5_correct": correct5,
        "loss": float(said["loss"][readable].mean(dtype=np.float64)),
        "unreadable": int((~readable).sum()),
    }


def confusion(said: dict[str, np.ndarray]) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images), the most first."""
    readable = said["label"] >= 0
    cells = Counter(zip(said["label"][readable].tolist(), said["predicted"][readable].tolist(), strict=True))
    return sorted(((true, predicted, n) for (true, predicted), n in cells.items()), key=lambda row: (-row[2], *row))


def write(folder: Path, source: predict.Marked, said: dict[str, np.ndarray], errors: Sequence[str]) -> None:
    """confusion.csv, worst.png, unreadable.json."""
    classes = labels.imagenet_classes()
    with (folder / "confusion.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("true", "true_name", "predicted", "predicted_name", "images"))
        rows.writerows((*classes[true], *classes[predicted], n) for true, predicted, n in confusion(said))
    report.write_json(folder / "unreadable.json", list(errors))
    wrong = np.flatnonzero((said["label"] >= 0) & (said["rank"] > 0))
    worst = wrong[np.argsort(-said["loss"][wrong], kind="stable")][:MOST_SHOWN]
    titles = [
        f"said {classes[said['predicted'][i]][1][:22]} {said['confidence'][i]:.0%}\n"
        f"is {classes[said['label'][i]][1][:24]} {np.exp(-said['loss'][i]):.1%}"
        for i in worst
    ]
    if len(worst):
        grid = plot.image_grid([source[int(i)]["image"] for i in worst], titles, 4, 2.4, "the highest losses")
        plot.save(grid, folder / "worst.png")


def show(
    config: Config, entry: Published, summary: dict[str, Any], said: dict[str, np.ndarray], errors: Sequence[str]
) -> None:
    """The tables, and on stderr what could not be read."""
    if jax.process_index():
        return
    names = [name for _, name in labels.imagenet_classes()]
    pairs = [row for row in confusion(said) if row[0] != row[1]][:MOST_SHOWN]
    report.table("most confused", [{"is": names[t], "taken for": names[p], "images": n} for t, p, n in pairs])
    rows = [
        {
            "": f"top-{k}",
            "correct": f"{summary[f'top{k}_correct']} of {summary['count']}",
            "here": f"{summary[f'top{k}']:.2%}",
            "published, 50,000 images": f"{getattr(entry, f'top{k}')} %",
        }
        for k in (1, 5)
    ]
    report.table("RANDOM WEIGHTS: these figures mean nothing" if config.smoke else config.weights, rows)
    print(f"results in {config.run_dir}")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints the tables, writes the report; returns the summary."""
    sharding.start()
    config = resolve(config)
    data = load_data(config)
    mesh = sharding.make_mesh()
    network = predict.network(config.weights, config.file, random=config.smoke)
    transform = predict.host_transform(network.entry, config.resize)
    source = predict.Marked(data, transform, network.entry.image_size)
    with report.Run(config.run_dir, config, {"images": len(source)}) as run:
        said = examine(network, source, config.batch_size, mesh)
        errors = source.errors(said["label"])
        summary = figures(said)
        if run.writes:
            write(run.dir, source, said, errors)
        run.finish(summary)
    show(config, network.entry, summary, said, errors)
    return summary


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
