"""Names what published networks see in photos: by default ResNet-50 in scikit-learn's two, as in the chapter.

    python experiments/predict.py                                      # about 20 s on 2 CPU cores, and 103 MB once
    python experiments/predict.py photo.jpg folder 'photos/*.png' --weights xception.keras --top 3
    python experiments/predict.py --weights resnet50.keras --file resnet50_weights_tf_dim_ordering_tf_kernels.h5
    python experiments/predict.py --smoke                              # random weights, nothing is downloaded

It leaves predictions.json, predictions.png and summary.json in the run folder. With ``--weights
mobilenet_v1_0.75_224.keras --resize squeeze`` china.jpg is, in this order, beacon, palace, bell_cote, stupa, dome.
"""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from sklearn.datasets import load_sample_images

from cnnjax import plot, report, sharding, weights
from cnnjax.data import sources
from cnnjax.tasks import predict
from cnnjax.types import Array, Batch, PyTree, UserError
from cnnjax.weights.labels import Prediction, decode_predictions


@dataclass(frozen=True)
class Config:
    """What to look at, and with which network."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders (with those in them) and patterns such as 'photos/*.jpg'; none: scikit-learn's two photos."""
    weights: str = "resnet50.keras"
    """A tag of cnnjax.weights.published(): the network, its weights, and how its images are prepared."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""
    resize: predict.Resize = "crop"
    """crop: as the publisher, shorter side to a size, then the centre; squeeze: all of the image, its proportions
    lost, as in the chapter; square: the largest central square."""
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
    if (entry := weights.published().get(config.weights)) and config.top > entry.classes:
        raise UserError(f"--top must be at most {entry.classes}, the classes of {config.weights}; got {config.top}")
    return replace(config, run_dir=report.run_folder(config.run_dir, f"predict-{config.weights}"))


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
    network = predict.network(config.weights, config.file, random=config.smoke)
    files = sources.Folder(tuple(paths), np.zeros(len(paths), np.int32), ("unknown",))
    source = predict.Marked(files, predict.host_transform(network.entry, config.resize), network.entry.image_size)
    with report.Run(config.run_dir, config, {}) as run:

        def compute(variables: PyTree, batch: Batch) -> tuple[Array, Array]:
            return batch["label"], jax.nn.softmax(network.logits(variables, batch["image"]))

        labels, probabilities = predict.for_each(compute, network.variables, source, config.batch_size, mesh)
        errors = source.errors(labels)
        readable = np.flatnonzero(labels >= 0)
        named = decode_predictions(probabilities[readable], config.top)
        result = dict(zip(readable.tolist(), named, strict=True))
        summary = {"images": len(result), "unreadable": len(errors)}
        if run.writes:
            write(run.dir, config, source, paths, result, errors)
        run.finish(summary)
    show(config, paths, result, errors)
    return summary


Named = dict[int, list[Prediction]]  # place of the image → its best classes


def write(
    folder: Path, config: Config, source: predict.Marked, paths: Sequence[Path], result: Named, errors: Sequence[str]
) -> None:
    """predictions.json, and predictions.png with the first images as the network saw them."""
    content = {
        "weights": "random" if config.smoke else config.weights,
        "images": [{"file": str(paths[i]), "predictions": [p._asdict() for p in named]} for i, named in result.items()],
        "unreadable": list(errors),
    }
    report.write_json(folder / "predictions.json", content)
    few = list(result)[:MOST_SHOWN]
    titles = ["\n".join((paths[i].name[:32], *(f"{p.name[:26]} {p.score:.0%}" for p in result[i][:5]))) for i in few]
    figure = plot.image_grid([source[i]["image"] for i in few], titles, 4, 2.4, RANDOM if config.smoke else "")
    plot.save(figure, folder / "predictions.png")


RANDOM = "RANDOM WEIGHTS: these names mean nothing"


def show(config: Config, paths: Sequence[Path], result: Named, errors: Sequence[str]) -> None:
    """The table, and on stderr what could not be read."""
    if jax.process_index():
        return
    rows = [
        {"image": "" if place else paths[i].name, "WordNet id": p.wnid, "class": p.name, "%": f"{100 * p.score:.2f}"}
        for i in list(result)[:MOST_SHOWN]
        for place, p in enumerate(result[i])
    ]
    report.table(RANDOM if config.smoke else config.weights, rows)
    more = f"; {len(result) - MOST_SHOWN} images more are there only" if len(result) > MOST_SHOWN else ""
    print(f"{config.run_dir}: predictions.json, predictions.png{more}")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)
    if config.smoke:
        print(RANDOM, file=sys.stderr)


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
