"""Classes that a network predicts for images: by default ResNet-50 for scikit-learn's two photos, as in the chapter.

    python experiments/predict.py                                      # about 20 s on 2 CPU cores, and 103 MB once
    python experiments/predict.py photo.jpg folder 'photos/*.png' --weights xception.keras --top 3
    python experiments/predict.py --weights resnet50.keras --file resnet50_weights_tf_dim_ordering_tf_kernels.h5
    python experiments/predict.py photo.jpg --run runs/flowers         # the network that a run has trained
    python experiments/predict.py dog.jpg --darknet yolov3.cfg yolov3.weights --names coco.names
    python experiments/predict.py film.gif frames/ --run runs/detect-x --frames   # a GIF with the boxes, too
    python experiments/predict.py big.jpg --run runs/segment-x --tile 1024       # at its own size, in tiles
    python experiments/predict.py small.jpg --run runs/super-resolution-x         # enlarged: images/ in the run folder
    python experiments/predict.py --smoke                              # random weights, nothing is downloaded

It writes predictions.json, predictions.png and summary.json into the run folder. With ``--weights
mobilenet_v1_0.75_224.keras --resize squeeze`` china.jpg is, in this order, beacon, palace, bell_cote, stupa, dome.
A run's network predicts what it was trained for: that of localize.py also predicts a box.
"""

import glob
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from sklearn.datasets import load_sample_images

from cnnjax import atomic, cli, experiment, plot, report, serving, settings
from cnnjax.data import sources
from cnnjax.data.formats import frames, images
from cnnjax.ops import tiles
from cnnjax.types import Batch, Picture, Prediction, PyTree, Rows, Sums, Task, UserError


@dataclass(frozen=True)
class Config:
    """Images, and the network that predicts their classes."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders (with their sub-folders) and patterns such as 'photos/*.jpg'; none: scikit-learn's two photos."""
    top: settings.PositiveInt | None = None
    """Classes or objects to name for each image; None: 5 classes, all objects."""
    batch_size: settings.PositiveInt = 32
    """Images per batch, over all devices."""

    frames: bool = False
    """Predict every frame of animations, not only the first; NAME.gif in the run folder shows the first 200."""

    tile: settings.PositiveInt | None = None
    """Predict images at their own size, of segment.py's and super_resolution.py's networks, in tiles of so many pixels;
    None: an image is made to fit the network, and enlarged in tiles of 256."""
    overlap: settings.NonNegativeInt | None = None
    """Pixels by which tiles overlap; results are those of the whole image where half of it is the radius of what a
    pixel of the result depends on. None: a quarter of the tile."""

    network: tyro.conf.OmitArgPrefixes[settings.Network] = settings.Network()
    test_time: tyro.conf.OmitArgPrefixes[settings.TestTime] = settings.TestTime()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


MOST_SHOWN = 24  # images in the table and in the figure; all are in predictions.json
ENLARGED_TILE = 256
TILED = {"segment": 32, "super_resolve": 1}  # tasks, and pixels of which their tiles begin at multiples
MOST_FRAMES = 200  # in the animation of a file
RANDOM = "RANDOM WEIGHTS: these predictions mean nothing"


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Paths of the images that match ``patterns``, each once.

    Raises:
      UserError: nothing matches a pattern, or a folder has no images.
    """
    if not patterns:
        return [Path(name) for name in load_sample_images().filenames]
    found: dict[Path, None] = {}
    for name in patterns:
        path = Path(name).expanduser()
        matches = [path] if path.exists() else [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
        listed = [images.files_below(match) if match.is_dir() else ([match], Counter[str]()) for match in matches]
        paths, others = [each for paths, _ in listed for each in paths], sum((n for _, n in listed), Counter[str]())
        left = f"left out: {images.left_out(others)}" if others else ""
        if not paths:
            cure = "give files, folders with images, or a quoted pattern"
            raise UserError(f"{name}: no images there{left and f' ({left})'}; {cure}")
        if left:
            print(f"{name}: {left}", file=sys.stderr)
        found.update(dict.fromkeys(paths))
    return list(found)


class Tiling(NamedTuple):
    """Tiles in which images are predicted, see ``ops.tiles``."""

    size: int
    overlap: int
    multiple: int


def tiling(config: Config, task: str) -> Tiling | None:
    """Tiles for a task; None: images are made to fit the network.

    Raises:
      UserError: the flags fit neither the task nor each other.
    """
    multiple = TILED.get(task)
    if multiple is None:
        if config.tile or config.overlap is not None:
            raise UserError(f"--tile and --overlap are for {' and '.join(TILED)}: {config.network.title} does {task}")
        return None
    if config.tile is None and task != "super_resolve":
        if config.overlap is not None:
            raise UserError("--overlap is of tiles: give --tile, too")
        return None
    size = config.tile or ENLARGED_TILE
    overlap = size // (8 * multiple) * 2 * multiple if config.overlap is None else config.overlap
    tiles.along(1, size, overlap, multiple)  # raises
    return Tiling(size, overlap, multiple)


def open_images(shown: Sequence[frames.Frame], card: serving.Card, *, as_they_are: bool = False) -> sources.Lenient:
    """Images as they are or prepared for the network; one that cannot be read is black, and False in ``readable``."""
    files = frames.Frames(tuple(shown), card.channels)
    blank = {"image": np.zeros(card.shape, np.uint8), "label": np.int32(0)}
    return sources.Lenient(files if as_they_are else sources.Mapped(files, card.transform()), blank)


def predict_all(
    served: serving.Served, task: Task, source: sources.Lenient, batch_size: int
) -> tuple[dict[int, Prediction], np.ndarray]:
    """Prediction of each image that can be read, by its place, and which can, bool [n]."""

    def compute(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        return {}, {"readable": batch["readable"], **task.predict(variables, batch["image"])}

    found = experiment.rows(compute, served.variables, source, batch_size)
    readable = found.pop("readable")
    return {int(i): {name: x[i] for name, x in found.items()} for i in np.flatnonzero(readable)}, readable


def predict_tiled(
    served: serving.Served, task: Task, source: sources.Lenient, tiled: Tiling
) -> tuple[dict[int, Prediction], np.ndarray]:
    """Predictions as ``predict_all``, of images at their own size."""
    compute, variables, predictions = jax.jit(task.predict), jax.device_put(served.variables), {}
    readable = np.zeros(len(source), bool)

    def on_tile(images: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(compute(variables, images))

    for place in range(len(source)):
        example = source[place]
        readable[place] = example["readable"]
        if readable[place]:
            predictions[place] = tiles.predict(on_tile, example["image"], *tiled)
    return predictions, readable


def in_photo(served: serving.Served, shown: frames.Frame, prediction: Prediction) -> Prediction:
    """Prediction whose boxes and classes of pixels are in the pixels of the upright image."""
    width, height = images.header_size(shown.path, shown.number or 0)
    back, found = served.card.transform(), dict(prediction)
    if "boxes" in found:
        found["boxes"] = back.restore(np.reshape(found["boxes"], (-1, 4)), height, width)
    if "segmentation" in found:
        found["segmentation"] = back.restore_plane(np.asarray(found["segmentation"]), height, width)
    return found


def described(
    task: Task, place: int, shown: frames.Frame, prediction: Prediction, top: int | None, run: report.Run
) -> dict[str, Any]:
    """Entry of an image in predictions.json; classes of pixels, and images, are files in the run folder."""
    frame = {} if shown.number is None else {"frame": shown.number}
    entry: dict[str, Any] = {"file": str(shown.path), **frame, **task.describe(prediction, top)}
    for key, field, save in (("mask", "segmentation", plot.save_mask), ("image", "image", plot.save_pixels)):
        if field in prediction:
            entry[key] = f"{key}s/{place:05d}-{shown.path.stem}.png"
            if run.writes:
                save(prediction[field], run.dir / entry[key])
    return entry


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    if config.output.smoke and not config.network.run:
        config = settings.change(config, weights=settings.SMOKE, file=None)
    return experiment.resolve(config, f"predict-{config.network.title}")


def main(config: Config) -> dict[str, Any]:
    """Predicts the classes of the images, prints the table, writes the report; returns the summary."""
    config = resolve(config)
    paths = find_images(config.images)
    classes = len(config.network.card(random=config.output.smoke).classes)
    if config.network.of_publisher and (config.top or 0) > classes:  # other networks' classes may be few
        raise UserError(f"--top must be at most {classes}, the classes of {config.network.title}; got {config.top}")
    served = config.network.load(random=config.output.smoke)
    shown = frames.listed(paths) if config.frames else [frames.Frame(path) for path in paths]
    task = served.card.make_task(served.model, **config.test_time.options(served.card.task))
    tiled = tiling(config, served.card.task)
    source = open_images(shown, served.card, as_they_are=tiled is not None)
    with experiment.opened(config, {}) as run:
        if tiled:
            predictions, readable = predict_tiled(served, task, source, tiled)
        else:
            predictions, readable = predict_all(served, task, source, config.batch_size)
        errors = source.errors(readable)
        entries = []
        for i, each in predictions.items():
            found = each if tiled else in_photo(served, shown[i], each)
            entries.append(described(task, i, shown[i], found, config.top, run))
        title = "random" if config.output.smoke else config.network.title
        content = {"weights": title, "images": entries, "unreadable": errors}
        summary = {"images": len(entries), "unreadable": len(errors)}
        if run.writes:
            atomic.write_json(run.dir / "predictions.json", content)
        run.finish(summary)

        def drawn(place: int) -> Picture:
            each = task.draw({"image": source[place]["image"]}, predictions[place])
            return each._replace(title=f"{shown[place].name}\n{each.title}")

        warning = RANDOM if config.output.smoke else ""
        few = list(predictions)[:MOST_SHOWN]
        drawings = {"predictions.png": lambda: plot.pictures([drawn(i) for i in few], suptitle=warning)}
        experiment.draw(run, {**drawings, **animations(shown, list(predictions), drawn)})
    show(config, entries, errors)
    return summary


def animations(
    shown: Sequence[frames.Frame], places: Sequence[int], drawn: Callable[[int], Picture]
) -> experiment.Drawings:
    """NAME.gif for each animation: its first frames with their predictions; NAME-2.gif for the second of a name."""
    by_file: dict[Path, list[int]] = {}
    for place in places:
        if shown[place].number is not None:
            by_file.setdefault(shown[place].path, []).append(place)
    names, found = Counter[str](), {}
    for path, own in by_file.items():
        names[path.stem] += 1
        name = path.stem if names[path.stem] == 1 else f"{path.stem}-{names[path.stem]}"
        found[f"{name}.gif"] = lambda own=own: (plot.pictures([drawn(i)], cell=5) for i in own[:MOST_FRAMES])
    return found


def show(config: Config, entries: Sequence[dict[str, Any]], errors: Sequence[str]) -> None:
    """Prints the table, and on stderr the images that could not be read."""
    if jax.process_index():
        return
    rows = []
    for entry in entries[:MOST_SHOWN]:
        for rank, each in enumerate(entry.get("predictions", [entry])):
            named = {
                "WordNet id" if key == "wnid" else key: value
                for key, value in each.items()
                if key not in ("file", "frame")
            }
            score = {"%": f"{100 * named.pop('score'):.2f}"} if "score" in named else {}
            name = frames.Frame(Path(entry["file"]), entry.get("frame")).name
            rows.append({"image": "" if rank else name, **named, **score})
    report.table(RANDOM if config.output.smoke else config.network.title, rows)
    more = f"; {len(entries) - MOST_SHOWN} images more are there only" if len(entries) > MOST_SHOWN else ""
    print(f"{config.output.run_dir}: predictions.json, predictions.png{more}")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)
    if config.output.smoke:
        print(RANDOM, file=sys.stderr)


if __name__ == "__main__":
    cli.main(main, Config)
