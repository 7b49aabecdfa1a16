"""Names what published networks see in photos: by default ResNet-50 in scikit-learn's two, as in the chapter.

    python experiments/predict.py                                      # about 20 s on 2 CPU cores, and 103 MB once
    python experiments/predict.py photo.jpg folder 'photos/*.png' --weights xception.keras --top 3
    python experiments/predict.py --weights resnet50.keras --file resnet50_weights_tf_dim_ordering_tf_kernels.h5
    python experiments/predict.py photo.jpg --run runs/flowers         # the network that a run has trained
    python experiments/predict.py --smoke                              # random weights, nothing is downloaded

It leaves predictions.json, predictions.png and summary.json in the run folder. With ``--weights
mobilenet_v1_0.75_224.keras --resize squeeze`` china.jpg is, in this order, beacon, palace, bell_cote, stupa, dome.
A run of localize.py also says where.
"""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from sklearn.datasets import load_sample_images

from cnnjax import models, plot, report, sharding
from cnnjax.data import sources
from cnnjax.tasks import predict, serve
from cnnjax.types import Array, Batch, PyTree, UserError
from cnnjax.weights.labels import Prediction, best, imagenet_classes


@dataclass(frozen=True)
class Config:
    """What to look at, and with which network."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders (with those in them) and patterns such as 'photos/*.jpg'; none: scikit-learn's two photos."""
    weights: str = "resnet50.keras"
    """A tag of cnnjax.weights.published(): the network, its weights, and how its images are prepared."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""
    run: Path | None = None
    """The folder of a run of flowers.py, localize.py or classify.py, whose network to take in place of --weights."""
    resize: predict.Resize | None = None
    """crop: as the publisher, shorter side to a size, then the centre; squeeze: all of the image, its proportions
    lost, as in the chapter; square: the largest central square. None: crop; with --run as in training."""
    top: int = 5
    """Classes to name for each image."""
    batch_size: int = 32
    """Images at once, over all devices."""
    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given."""
    smoke: bool = False
    """A small network with random weights, to see that everything works: what it says means nothing."""


SMOKE = "mobilenet_v1_0.25_128.keras"
MOST_SHOWN = 24  # images in the table and in the picture; all are in predictions.json


def resolve(config: Config) -> Config:
    """Checks what can be checked at once, and makes ``--smoke`` small."""
    report.check_ranges(config, above_zero=("top", "batch_size"))
    if config.smoke:
        config = replace(config, weights=SMOKE, file=None)
    if config.run and (config.smoke or config.file or config.resize):
        raise UserError("--run has a network and its way of resizing: leave out --file, --resize and --smoke")
    return replace(config, run_dir=report.run_folder(config.run_dir, f"predict-{name(config)}"))


def name(config: Config) -> str:
    """Of the network."""
    return config.run.resolve().name if config.run else config.weights


def load(config: Config) -> tuple[serve.Served, list[tuple[str, str]]]:
    """The network and its classes: (WordNet id, or nothing, and name).

    Raises:
      UserError: it cannot be had, or has fewer classes than are to be named.
    """
    if config.run:
        served = serve.load(config.run, models.create)
        classes = [("", each) for each in served.card.classes]
    else:
        network = predict.network(config.weights, config.file, random=config.smoke)
        served = serve.of_published(network, config.resize or "crop")
        classes = list(imagenet_classes())
    if config.top > len(classes) and not config.run:  # a run's classes may be few
        raise UserError(f"--top must be at most {len(classes)}, the classes of {name(config)}; got {config.top}")
    return served, classes


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files that the names stand for, in this order, each once.

    Raises:
      UserError: a name stands for none.
    """
    if not names:
        return [Path(name) for name in load_sample_images().filenames]
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        paths = [each for match in matches for each in (sources.images_below(match) if match.is_dir() else [match])]
        if not paths:
            raise UserError(f"{name}: no images there; give files, folders with images, or a quoted pattern")
        found.update(dict.fromkeys(paths))
    return list(found)


def main(config: Config) -> dict[str, Any]:
    """Names what is in the images, prints the table, writes the report; returns the summary."""
    sharding.start()
    config = resolve(config)
    paths = find_images(config.images)
    mesh = sharding.make_mesh()
    served, classes = load(config)
    files = sources.Folder(tuple(paths), np.zeros(len(paths), np.int32), ("unknown",), served.card.channels)
    source = predict.Marked(files, served.card.transform(), served.card.image_size, served.card.channels)
    with report.Run(config.run_dir, config, {}) as run:

        def compute(variables: PyTree, batch: Batch) -> tuple[Array, dict[str, Array]]:
            return batch["label"], served.predict(variables, batch["image"])

        labels, said = predict.for_each(compute, served.variables, source, config.batch_size, mesh)
        errors = source.errors(labels)
        readable = np.flatnonzero(labels >= 0)
        named = best(said["probabilities"][readable], classes, min(config.top, len(classes)))
        seen = [
            Seen(int(place), paths[place], predictions, said["boxes"][place] if "boxes" in said else None)
            for place, predictions in zip(readable, named, strict=True)
        ]
        summary = {"images": len(seen), "unreadable": len(errors)}
        if run.writes:
            write(run.dir, config, source, seen, errors)
        run.finish(summary)
    show(config, seen, errors)
    return summary


class Seen(NamedTuple):
    """What the network says of an image."""

    place: int
    path: Path
    predictions: list[Prediction]
    box: np.ndarray | None
    """xyxy in pixels of the image as the network saw it."""


def write(folder: Path, config: Config, source: predict.Marked, seen: Sequence[Seen], errors: Sequence[str]) -> None:
    """predictions.json, and predictions.png with the first images as the network saw them."""
    content = {
        "weights": "random" if config.smoke else name(config),
        "images": [as_json(each, source) for each in seen],
        "unreadable": list(errors),
    }
    report.write_json(folder / "predictions.json", content)
    few = seen[:MOST_SHOWN]
    titles = ["\n".join((x.path.name[:32], *(f"{p.name[:26]} {p.score:.0%}" for p in x.predictions[:5]))) for x in few]
    images = [source[x.place]["image"] for x in few]
    if seen[0].box is None:
        figure = plot.image_grid(images, titles, 4, 2.4, RANDOM if config.smoke else "")
    else:
        names = [x.predictions[0].name for x in few]
        figure = plot.boxed(images, [x.box[None] for x in few], [[i] for i in range(len(few))], names, titles)
    plot.save(figure, folder / "predictions.png")


def as_json(seen: Seen, source: predict.Marked) -> dict[str, Any]:
    """The entry in predictions.json; a box there is xyxy in pixels of the file, turned upright."""
    predictions = [{k: v for k, v in p._asdict().items() if v != ""} for p in seen.predictions]
    entry = {"file": str(seen.path), "predictions": predictions}
    if seen.box is None:
        return entry
    height, width = source.source[seen.place]["image"].shape[:2]
    box = seen.box * np.array([width, height, width, height]) / source.size  # localizers squeeze
    return {**entry, "box": [round(float(x), 1) for x in box]}


RANDOM = "RANDOM WEIGHTS: these names mean nothing"


def show(config: Config, seen: Sequence[Seen], errors: Sequence[str]) -> None:
    """The table, and on stderr what could not be read."""
    if jax.process_index():
        return
    rows = [
        {"image": "" if rank else x.path.name, "WordNet id": p.wnid, "class": p.name, "%": f"{100 * p.score:.2f}"}
        for x in seen[:MOST_SHOWN]
        for rank, p in enumerate(x.predictions)
    ]
    if config.run:
        rows = [{key: text for key, text in row.items() if key != "WordNet id"} for row in rows]
    report.table(RANDOM if config.smoke else name(config), rows)
    more = f"; {len(seen) - MOST_SHOWN} images more are there only" if len(seen) > MOST_SHOWN else ""
    print(f"{config.run_dir}: predictions.json, predictions.png{more}")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)
    if config.smoke:
        print(RANDOM, file=sys.stderr)


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
