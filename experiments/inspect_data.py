"""Check of a data set's labels: draws samples, counts classes and sizes, and lists each fault with its place.

    python experiments/inspect_data.py photos                     # one sub-folder of images per class
    python experiments/inspect_data.py animals --split train      # Pascal VOC, as LabelImg writes it
    python experiments/inspect_data.py coco --split val2017       # COCO JSON; or VGG Image Annotator's JSON or CSV

Every image is decoded, and again only when it changes: 1,300 photos of 640×480 a second on 2 CPU cores. The run folder
gets samples.png, classes.csv, faults.csv and summary.json. To expect: ``shared/data/bccd`` has 364 images and 4,888
boxes, two of which have no area.
"""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from cnnjax import atomic, cli, experiment, plot, report, settings
from cnnjax.data import annotations, checking
from cnnjax.data.annotations import Annotations, Fault, NoAnnotationsError
from cnnjax.data.formats import folders, images
from cnnjax.types import Picture, UserError


@dataclass(frozen=True)
class Config:
    """Data set, and the samples to draw from it."""

    data: tyro.conf.Positional[Path]
    """Class folders, a Pascal VOC folder, or COCO or VGG Image Annotator's annotations: a folder or a file."""
    split: str | None = None
    """List of a VOC folder, or annotation file; None: all, or the only one."""
    samples: settings.PositiveInt = 16
    """Number of images to draw."""
    seed: settings.NonNegativeInt = 0
    """Seed of the choice of images to draw."""

    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


@dataclass
class Findings:
    """Counts, sizes and faults of a data set, class folders or annotations."""

    kind: str
    classes: tuple[str, ...]
    images: Counter[str]  # class → number of images that have it
    objects: Counter[str] = field(default_factory=Counter)  # class → number of boxes
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of the readable images
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    faults: list[Fault] = field(default_factory=list)
    paths: list[Any] = field(default_factory=list)  # of the readable images, or their records


FOLDER_FAULTS = {
    "unreadable picture": "it cannot be decoded",
    "duplicate": "the same file again",
    "two classes": "the same file in another class: one of them is wrong",
}


def of_folder(source: folders.Folder) -> Findings:
    """Findings in class folders: every file is read, decoded, and compared with the others."""

    def digest(path: Path, verdict: checking.Verdict) -> str:
        return "" if verdict.error else hashlib.sha256(path.read_bytes()).hexdigest()

    found = Findings("class folders", source.classes, Counter())
    verdicts = checking.verdicts(source.paths, experiment.checks())
    with ThreadPoolExecutor(checking.THREADS) as pool:
        digests = list(pool.map(digest, source.paths, verdicts))
    first: dict[str, tuple[Path, int]] = {}
    for path, label, verdict, text in zip(source.paths, source.labels, verdicts, digests, strict=True):
        if verdict.error:
            found.faults.append(Fault(path, "", "unreadable picture", f"{path}: {verdict.error}"))
            continue
        found.images[source.classes[label]] += 1
        found.sizes.append((verdict.width, verdict.height))
        found.paths.append((path, label))
        twin, other = first.setdefault(text, (path, label))
        if twin != path:
            found.faults.append(Fault(path, "", "duplicate" if label == other else "two classes", f"same as {twin}"))
    return found


def of_boxes(data: Annotations) -> Findings:
    """Findings in annotations that were checked."""
    found = Findings(data.kind, data.classes, Counter(), faults=list(data.faults), paths=list(data.records))
    for record in data.records:
        found.images.update(data.classes[label] for label in np.unique(record.labels))
        found.objects.update(data.classes[label] for label in record.labels)
        found.sizes.append((record.width, record.height))
    found.boxes = np.concatenate([record.boxes for record in data.records])
    return found


def look(path: Path, split: str | None) -> Findings:
    """Findings in annotations where there are some, else in class folders.

    Raises:
      UserError: there are neither, or the annotations cannot be read.
    """
    try:
        return of_boxes(annotations.open(path, split, check=True, cache=experiment.checks()))
    except NoAnnotationsError as error:
        try:
            source = folders.Folder.open(path)
        except UserError as other:
            raise UserError(f"{error}; or class folders, but {other}") from other
    if split is not None:
        raise UserError(f"{path} has class folders and no splits: leave --split out, or give the folder of one split")
    return of_folder(source)


def class_rows(found: Findings) -> list[dict[str, Any]]:
    """One line per class, and their sum where boxes are counted."""
    rows: list[dict[str, Any]] = []
    for name in found.classes:
        boxes = {"boxes": found.objects[name]} if found.kind != "class folders" else {}
        rows.append({"class": name, "images": found.images[name], **boxes})
    return rows


def size_rows(found: Findings) -> list[dict[str, Any]]:
    """Smallest, median and largest of each size, in pixels."""
    width, height = np.array(found.sizes or [(0, 0)]).T
    measured = {"image width": width, "image height": height}
    if len(found.boxes):
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        measured |= {"box width": sides[:, 0], "box height": sides[:, 1], "√ box area": np.sqrt(sides.prod(1))}
    return [
        {"pixels": name, "least": f"{v.min():.0f}", "median": f"{np.median(v):.0f}", "most": f"{v.max():.0f}"}
        for name, v in measured.items()
    ]


def draw(found: Findings, count: int, seed: int) -> plot.Figure:
    """Figure of ``count`` images drawn at random, with their boxes."""
    chosen = np.random.default_rng(seed).permutation(len(found.paths))[:count]
    return plot.pictures([drawn(found, found.paths[i]) for i in chosen])


def drawn(found: Findings, item: Any) -> Picture:
    """Image with its class, or with its boxes and their classes."""
    if found.kind == "class folders":
        path, label = item
        return Picture(images.decode(path, 3, path, upright=True), found.classes[label])
    names = tuple(found.classes[label] for label in item.labels)
    return Picture(annotations.picture(item), item.path.name, item.boxes, names, tuple(map(int, item.labels)))


def main(config: Config) -> dict[str, Any]:
    """Reads everything, prints the tables, writes the report; returns the summary."""
    config = experiment.resolve(config, f"inspect-{config.data.name or 'data'}")
    found = look(config.data.expanduser(), config.split)
    rows, kinds = class_rows(found), Counter(fault.kind for fault in found.faults)
    summary = {"kind": found.kind, "images": len(found.sizes), "boxes": len(found.boxes), "classes": len(rows)}
    summary |= {f"faults/{kind}": count for kind, count in sorted(kinds.items())}
    with experiment.opened(config, {}) as run:
        if run.writes:
            header = list(rows[0]) if rows else ["class"]
            atomic.write_csv(run.dir / "classes.csv", header, [list(row.values()) for row in rows])
            atomic.write_csv(run.dir / "faults.csv", Fault._fields, found.faults)
        run.finish(summary)
        if found.paths:
            count = 4 if config.output.smoke else config.samples
            experiment.draw(run, {"samples.png": lambda: draw(found, count, config.seed)})
    report.table(f"{config.data.name}: {found.kind}, {len(found.sizes)} images, {len(found.boxes)} boxes", rows)
    report.table("sizes", size_rows(found))
    known = {**annotations.FAULTS, **(FOLDER_FAULTS if found.kind == "class folders" else {})}
    examples = {fault.kind: fault for fault in reversed(found.faults)}
    faults = [
        {"fault": kind, "what becomes of it": known[kind], "times": n, "first": examples[kind].file.name}
        for kind, n in kinds.most_common()
    ]
    report.table("faults", faults)
    print(f"{len(found.faults)} faults; samples.png, classes.csv and faults.csv in {run.dir}")
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
