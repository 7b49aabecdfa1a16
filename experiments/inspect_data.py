"""Check of a data set: draws samples, counts classes and sizes, and lists each fault of labels and splits.

    python experiments/inspect_data.py photos                     # one sub-folder of images per class
    python experiments/inspect_data.py animals --split train      # Pascal VOC, as LabelImg writes it; one split
    python experiments/inspect_data.py camvid                     # images beside masks: the share of each class
    python experiments/inspect_data.py coco --split val2017       # COCO JSON; or VGG Image Annotator's JSON or CSV

It reads the splits that training reads. A photo that is in two of them is a fault, as the same file or as one that
looks alike (see cnnjax/data/duplicates.py). Every image is decoded, and again only when it changes or where splits are
compared: 1,300 photos of 640×480 a second on 2 CPU cores. The run folder gets samples.png, classes.csv, faults.csv and
summary.json. To expect: ``shared/data/bccd`` has 364 images and 4,888 boxes, two of which have no area; one field of
view is in train and in test.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from cnnjax import atomic, cli, experiment, plot, report, settings
from cnnjax.data import annotations, catalog, checking, duplicates, segmented
from cnnjax.data.annotations import Annotations, Fault, NoAnnotationsError
from cnnjax.data.formats import folders, images, split_folders
from cnnjax.data.formats.mask_folders import NoMasksError
from cnnjax.data.masked import Segmented
from cnnjax.types import Picture, UserError


@dataclass(frozen=True)
class Config:
    """Data set, and the samples to draw from it."""

    data: tyro.conf.Positional[Path]
    """Class folders, annotated images or images with masks, see docs/data.md: a folder or a file."""
    split: str | None = None
    """Split of class folders, list of a VOC folder, or annotation file; None: all that training reads."""
    samples: settings.PositiveInt = 16
    """Number of images to draw."""
    seed: settings.NonNegativeInt = 0
    """Seed of the choice of images to draw."""

    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


@dataclass
class Findings:
    """Counts, sizes and faults of a split: class folders, annotations or images with masks."""

    kind: str
    classes: tuple[str, ...]
    images: Counter[str]  # class → number of images that have it
    objects: Counter[str] = field(default_factory=Counter)  # class → number of boxes
    pixels: Counter[str] = field(default_factory=Counter)  # class → number of pixels
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of the readable images
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    faults: list[Fault] = field(default_factory=list)
    paths: list[Any] = field(default_factory=list)  # of readable images: (path, label), record or MaskedImage


@dataclass(frozen=True)
class MaskedImage:
    """An image of a source with masks."""

    path: Path
    source: Segmented
    index: int


MASKS = "images with masks"
MASK_FAULTS = {"unusable": "the image is left out of training"}
FOLDER_FAULTS = {
    "unreadable picture": "it cannot be decoded",
    "duplicate": "the same file again",
    "two classes": "the same picture in another class: one of them is wrong",
}
SPLIT_FAULTS = {
    "in two splits": "the same file in another split: take it out of one, or the figures are too good",
    "alike in two splits": "it looks like a picture of another split: take it out of one if it is a copy",
    "class missing": "the split has no picture of it: its figures say nothing of this class",
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


def of_masks(source: Segmented) -> Findings:
    """Findings in images with masks: every image is decoded, every mask is read."""
    found = Findings(MASKS, source.classes, Counter())
    problems = source.problems(np.arange(len(source)), experiment.checks())
    for index, (pair, problem) in enumerate(zip(source.pairs, problems, strict=True)):
        if problem:
            found.faults.append(Fault(pair.image, "", "unusable", problem))
            continue
        counts = np.bincount(source.labels(index).ravel(), minlength=len(source.classes))[: len(source.classes)]
        found.images.update(source.classes[label] for label in np.flatnonzero(counts))
        found.pixels.update(dict(zip(source.classes, counts.tolist(), strict=True)))
        found.sizes += [size[::-1] for size in source.sizes(np.array([index]))]
        found.paths.append(MaskedImage(pair.image, source, index))
    return found


def look(path: Path, split: str | None) -> dict[str, Findings]:
    """Findings by split in annotations where there are some, else in images with masks, else in class folders; ``all``:
    there are no splits.

    Raises:
      UserError: there is nothing of the kind, they cannot be read, or there is no such split.
    """
    try:
        if split is not None:
            return {split: of_boxes(annotations.open(path, split, check=True, cache=experiment.checks()))}
        opened = catalog.open_annotated(path, check=True, cache=experiment.checks())
        return {part: of_boxes(each) for part, each in opened.items()}
    except NoAnnotationsError as error:
        kind, parts = "class folders", without_annotations(path, error)
    if split is not None and split not in parts:
        there = "no splits" if "all" in parts else f"the splits {', '.join(parts)}"
        kind = MASKS if any(isinstance(source, Segmented) for source in parts.values()) else kind
        raise UserError(f"{path} has {kind} and {there}: leave --split out, or give the folder of one split")
    return {
        part: of_masks(source) if isinstance(source, Segmented) else of_folder(source)
        for part, source in parts.items()
        if split in (None, part)
    }


def without_annotations(path: Path, error: UserError) -> Mapping[str, Any]:
    """Images with masks, or class folders, by split; UserError with ``error`` where it is neither."""
    try:
        return segmented.folder_parts(path)
    except NoMasksError:
        try:
            return split_folders.open_parts(split_folders.find(path))
        except UserError as other:
            raise UserError(f"{error}; or class folders, but {other}") from other


def shared(path: Path, found: Mapping[str, Findings]) -> list[Fault]:
    """Faults of the splits together: pictures that are in two of them, and classes that one lacks."""
    if len(found) == 1:
        return []
    with ThreadPoolExecutor(checking.THREADS) as pool:
        prints = {part: list(pool.map(print_of, each.paths)) for part, each in found.items()}
    faults: list[Fault] = []
    for pair in duplicates.between(prints):
        one, other = found[pair.split].paths[pair.place], found[pair.other_split].paths[pair.other_place]
        file, twin = map(file_of, (one, other))
        kind = "in two splits" if pair.same_file else "alike in two splits"
        faults.append(Fault(file, "", kind, f"same as {twin}"))
        if isinstance(one, tuple) and one[1] != other[1]:
            faults.append(Fault(file, "", "two classes", f"same as {twin}"))
    for part, each in found.items():
        lacking = [name for name in each.classes if not each.images[name]]
        faults += [Fault(path, name, "class missing", f"split {part}") for name in lacking]
    return faults


def file_of(item: Any) -> Path:
    """Path of one of the ``paths`` of findings."""
    return item[0] if isinstance(item, tuple) else item.path


def print_of(item: Any) -> duplicates.Print:
    """Fingerprint of one of the ``paths`` of findings."""
    path = file_of(item)
    if isinstance(item, MaskedImage):
        return duplicates.fingerprint(path.read_bytes(), item.source[item.index]["image"])
    image = images.decode(path, 3, path, upright=True) if isinstance(item, tuple) else annotations.picture(item)
    return duplicates.fingerprint(path.read_bytes(), image)


def merged(found: Mapping[str, Findings], faults: list[Fault]) -> Findings:
    """Findings of all splits as one, with other faults."""
    first = next(iter(found.values()))
    whole = Findings(first.kind, first.classes, Counter(), faults=[f for each in found.values() for f in each.faults])
    for each in found.values():
        whole.images.update(each.images)
        whole.objects.update(each.objects)
        whole.pixels.update(each.pixels)
        whole.sizes += each.sizes
        whole.paths += each.paths
    whole.boxes = np.concatenate([each.boxes for each in found.values()])
    whole.faults += faults
    return whole


def class_rows(whole: Findings, found: Mapping[str, Findings]) -> list[dict[str, Any]]:
    """One line per class: its images, its boxes or share of the pixels, and its images in each split."""
    rows: list[dict[str, Any]] = []
    for name in whole.classes:
        boxes: dict[str, Any] = {"boxes": whole.objects[name]} if whole.kind not in ("class folders", MASKS) else {}
        if whole.kind == MASKS:
            boxes = {"pixels": f"{whole.pixels[name] / max(whole.pixels.total(), 1):.2%}"}
        parts = {part: each.images[name] for part, each in found.items()} if len(found) > 1 else {}
        rows.append({"class": name, "images": whole.images[name], **boxes, **parts})
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
    if isinstance(item, MaskedImage):
        example = item.source[item.index]
        return Picture(example["image"], item.path.name, segmentation=example["segmentation"], legend=found.classes)
    names = tuple(found.classes[label] for label in item.labels)
    return Picture(annotations.picture(item), item.path.name, item.boxes, names, tuple(map(int, item.labels)))


def main(config: Config) -> dict[str, Any]:
    """Reads everything, prints the tables, writes the report; returns the summary."""
    config = experiment.resolve(config, f"inspect-{config.data.name or 'data'}")
    path = config.data.expanduser()
    parts = look(path, config.split)
    found = merged(parts, shared(path, parts))
    rows, kinds = class_rows(found, parts), Counter(fault.kind for fault in found.faults)
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
    boxes = "" if found.kind == MASKS else f", {len(found.boxes)} boxes"
    report.table(f"{config.data.name}: {found.kind}, {len(found.sizes)} images{boxes}", rows)
    report.say("; ".join(f"{part}: {len(each.sizes)} images" for part, each in parts.items()))
    report.table("sizes", size_rows(found))
    own = {"class folders": FOLDER_FAULTS, MASKS: MASK_FAULTS}.get(found.kind, {})
    known = {**annotations.FAULTS, **SPLIT_FAULTS, **own}
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
