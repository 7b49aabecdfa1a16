"""Images with boxes: Pascal VOC (LabelImg writes it), COCO JSON, VGG Image Annotator, YOLO; recognized by content.

    found = annotations.open("animals", split="train")
    found.records[0].boxes      # float32 [k, 4], xyxy in pixels from 0
    found.faults                # each with its file, object and kind
    AnnotatedImages(found)[0]   # {"image", "boxes", "labels", "ignore"}

Faulty boxes are never used, and never left out silently: `FAULTS` gives the treatment of each kind.
"""

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import checking, formats, preparation, records
from cnnjax.data.formats.annotated import Fault, Read, is_file, split_folder, table_file
from cnnjax.data.formats.images import decode
from cnnjax.data.records import Record
from cnnjax.types import UserError

FAULTS: Mapping[str, str] = {
    "degenerate": "the box has no area: left out",
    "outside": "nothing of the box is in the picture: left out",
    "clipped": "the box leaves the picture: what is inside is kept",
    "duplicate": "the same box and class again: left out",
    "unknown class": "left out",
    "unreadable": "no box can be read: left out",
    "no picture listed": "of a picture that the file does not list: left out",
    "not annotated": "a picture of the split without annotation: left out",
    "listed twice": "in the split: taken once",
    "no objects": "a picture without boxes: kept",
    "missing picture": "there is no such file: left out",
    "unreadable picture": "it cannot be decoded: left out",
    "other folder": "the picture is not where the file says: the only one of its name is taken",
    "size": "not the picture's: left out, its boxes would be too",
    "no class": "a category that only names the data set: left out",
    "class listed twice": "two categories with one name: one class",
}


class NoAnnotationsError(UserError):
    """No annotations in a known format."""


@dataclass(frozen=True)
class Annotations:
    """Images with their boxes, the names of the classes, and all faults; ``kind`` names the format.

    ``parents`` is the tree of the classes, where they are one, see `joint`.
    """

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    faults: tuple[Fault, ...]
    kind: str
    parents: tuple[int, ...] = ()

    @functools.cached_property
    def joint(self) -> bool:
        """True where there are images that only have a label."""
        return any(record.image_label >= 0 for record in self.records)


def open(
    path: Path | str,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    check: bool = False,
    cache: Path | None = None,
) -> Annotations:
    """Reads the annotations of a folder, or a COCO or VIA file.

    Args:
      path: folder with ``Annotations/*.xml`` and ``JPEGImages`` or xml beside the images (VOC), with
        ``annotations/*.json`` or a JSON (COCO), with a JSON or CSV (VIA), with data.yaml, or ``labels`` beside
        ``images`` (YOLO); or one of these files.
      split: a sub-folder that has all this; VOC: a list in ``ImageSets/Main``; YOLO: an entry of data.yaml; else the
        file, by its name (``instances_val2017``) or the end of it (``val2017``, ``val``). None: all, or the only file.
      classes: expected names, in the order of their labels; None: COCO's order, or by name, of the whole VOC folder.
      check: decode every image; one that cannot be used is left out and listed.
      cache: folder that keeps what the check finds out, see `checking.verdicts`.

    Raises:
      NoAnnotationsError: there is nothing in a known format.
      formats.annotated.NoSplitError: there is no such split.
      UserError: a damaged file, several files and no split, or nothing left.
    """
    path = Path(path).expanduser()
    kind, read = _read(path, split)
    found = checked(read, kind, classes)
    if check:
        faults = list(found.faults)
        left = _usable(found.records, {each.path: each.file for each in read.images}, faults, cache)
        found = replace(found, records=tuple(left), faults=tuple(faults))
    if not found.records:
        raise UserError(f"{path}: no picture with annotations is left{_commonest(found.faults)}")
    return found


def checked(read: Read, kind: str, classes: Sequence[str] | None = None) -> Annotations:
    """Images with the boxes that can be used, perhaps none, and all faults; the arguments are those of `open`."""
    faults, names = list(read.faults), tuple(classes if classes is not None else read.classes)
    labels = {name: i for i, name in enumerate(names)}
    found = [record for each in read.images if (record := records.usable(each, labels, faults)) is not None]
    return Annotations(tuple(found), names, tuple(faults), kind)


def counted(faults: Sequence[Fault]) -> str:
    """Number of faults and of each kind: ``3 faults in their labels: 2 × clipped, 1 × no objects``."""
    kinds = ", ".join(f"{count} × {kind}" for kind, count in Counter(fault.kind for fault in faults).most_common())
    return f"{len(faults)} faults in their labels{': ' if kinds else ''}{kinds}"


def _commonest(faults: Sequence[Fault]) -> str:
    """The commonest kinds of faults with their numbers and an example of each, to go on with a message."""
    first = {fault.kind: fault for fault in reversed(faults)}
    counts = Counter(fault.kind for fault in faults).most_common(3)
    parts = [f"{count} × {kind}, such as {first[kind].what} in {first[kind].file}" for kind, count in counts]
    return f": {'; '.join(parts)}" if parts else ""


def _read(path: Path, split: str | None) -> tuple[str, Read]:
    """Name of the format, and the result of its reader; see `formats.annotated`."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected annotations of Pascal VOC, COCO, VIA or YOLO")
    if (folder := split_folder(path, split)) is not None:
        path, split = folder, None
    names = [each.name for each in pkgutil.iter_modules(formats.__path__)]
    modules = [importlib.import_module(f"{formats.__name__}.{name}") for name in names]
    readers = {each.__name__.rpartition(".")[2]: each for each in modules if hasattr(each, "read_annotations")}
    problem: UserError | None = None
    for name in sorted(readers):
        try:
            if (read := readers[name].read_annotations(path, split)) is not None:
                return name, read
        except UserError as error:  # another reader may know the file; if none does, the first problem is the user's
            problem = problem or error
        except OSError as error:
            problem = problem or UserError(f"{path}: {error.strerror} ({error.filename})")
    if problem is not None:
        raise problem
    file, expected = table_file(path, split) or path, ", ".join(reader.EXPECTED for reader in readers.values())
    raise NoAnnotationsError(f"{file}: no annotations in a known format; expected {expected}")


def picture(record: Record) -> np.ndarray:
    """Image of a record, uint8 [h, w, 3], in the orientation in which it was labelled.

    Tools that respect EXIF orientation label the image as it is shown, others as it is stored; the size shows which.
    Where the two have the same size (half turns), the image as it is shown.

    Raises:
      CorruptImageError: it cannot be read.
      UserError: its size is not the record's.
    """
    image = decode(record.path, 3, record.path, upright=True)
    if image.shape[:2] != (record.height, record.width):
        image = decode(record.path, 3, record.path)
    if problem := _size_problem(record, image.shape[1], image.shape[0]):
        raise UserError(problem)
    return image


def _size_problem(record: Record, width: int, height: int) -> str:
    """Message if the size of the image as it is decoded is not the record's, else nothing."""
    if record.width * record.height > preparation.MOST_PIXELS:
        return f"{record.path}: too large to be decoded with its boxes: make it and its labels smaller"
    if (width, height) == (record.width, record.height):
        return ""
    cure = "label it again, or correct the size in its annotation"
    return f"{record.path}: labelled at {record.width}×{record.height}, but it has {width}×{height} pixels: {cure}"


def _problem(record: Record, verdict: checking.Verdict) -> tuple[str, str]:
    """Kind of the fault and message if the image cannot be used, else nothing, as `picture` would find."""
    if verdict.error:
        kind = "unreadable picture" if is_file(record.path) else "missing picture"
        return kind, f"{record.path}: {verdict.error}"
    width, height = verdict.width, verdict.height
    if verdict.sideways and (record.width, record.height) == (height, width):
        width, height = height, width
    problem = _size_problem(record, width, height)
    return "size" if problem else "", problem


def _usable(
    records: Sequence[Record], origin: Mapping[Path, Path], faults: list[Fault], cache: Path | None
) -> list[Record]:
    verdicts = checking.verdicts([record.path for record in records], cache)
    problems = [_problem(*each) for each in zip(records, verdicts, strict=True)]
    faults += [Fault(origin[r.path], "", *problem) for r, problem in zip(records, problems, strict=True) if problem[0]]
    return [record for record, (kind, _) in zip(records, problems, strict=True) if not kind]


@dataclass(frozen=True)
class LabelledImages:
    """A source: ``image`` uint8 [h, w, 3], ``boxes`` float32 [k, 4], ``labels`` int32 [k], and flags bool [k].

    ``crowd`` and ``difficult`` are the annotation's; ``ignore`` is True for both, which evaluation neither rewards nor
    punishes. In a joint set every image has ``image_label`` too, see `joint`.
    """

    annotations: Annotations

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.annotations.classes

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.annotations.records[index]
        flags = {"ignore": record.crowd | record.difficult, "crowd": record.crowd, "difficult": record.difficult}
        label: dict[str, Any] = {"image_label": np.int32(record.image_label)} if self.annotations.joint else {}
        return {"image": self.picture(record), "boxes": record.boxes, "labels": record.labels, **flags, **label}

    def picture(self, record: Record) -> np.ndarray:
        """Image of a record, uint8 [h, w, 3]."""
        raise NotImplementedError


class AnnotatedImages(LabelledImages):
    """Images in files; raises the errors of `picture`."""

    def picture(self, record: Record) -> np.ndarray:
        """Image of a record, see `picture`."""
        return picture(record)

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which images cannot be used, each with its file, empty for the others; see `checking`."""
        records = [self.annotations.records[i] for i in indices]
        verdicts = checking.verdicts([record.path for record in records], cache)
        return [_problem(*each)[1] for each in zip(records, verdicts, strict=True)]


def with_object_count(found: Annotations, objects: int) -> Annotations:
    """Images with exactly ``objects`` boxes: 1 for classification with localization.

    Raises:
      UserError: there is none.
    """
    records = tuple(record for record in found.records if len(record.boxes) == objects)
    if not records:
        raise UserError(f"no picture of {len(found.records)} has exactly {objects} box(es)")
    return replace(found, records=records)
