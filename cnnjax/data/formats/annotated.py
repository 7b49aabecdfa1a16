"""Annotation files: what every format's reader gives, and what several readers need; `annotations` judges it.

A reader is a module of this package with ``read_annotations(path, split) → Read | None`` (None: not this format) and
``EXPECTED``, a few words on its files for the error where no format is found. Readers are asked in the order of their
names, and the first that answers counts. A folder with XML files is annotated by these: its JSON and CSV files are not
looked at.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax.types import UserError

Box = tuple[float, float, float, float]


class NoSplitError(UserError):
    """The data set has no split of this name."""


class Fault(NamedTuple):
    """What is wrong where; ``kind`` is a key of `annotations.FAULTS`, ``object`` empty where it is the whole file."""

    file: Path
    object: str
    kind: str
    what: str


class Labelled(NamedTuple):
    """One object of an image: xyxy in pixels; ``fault`` (kind, what) says what makes it unusable."""

    name: str
    label: str
    box: Box = (0, 0, 0, 0)
    difficult: bool = False
    crowd: bool = False
    fault: tuple[str, str] | None = None


class AnnotatedImage(NamedTuple):
    """One image; ``file`` is where its faults are put right, ``size`` (width, height) None where it is not said."""

    id: str | int
    file: Path
    path: Path
    size: tuple[int, int] | None
    objects: list[Labelled]


@dataclass(frozen=True)
class Read:
    """The images of a split as a file describes them, class names in the order of their labels, and other faults."""

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    faults: tuple[Fault, ...] = ()


def xml_files(path: Path) -> list[Path]:
    """XML files in the folder ``Annotations`` of a folder, else in itself, sorted; none if it is no folder."""
    folders = (path / "Annotations", path)
    found = next((files for folder in folders if (files := sorted(folder.glob("*.xml")))), [])
    return [file for file in found if not file.name.startswith(".")]


def table_file(path: Path, split: str | None) -> Path | None:
    """The JSON or CSV file that ``path`` is, or has in ``annotations`` or itself; None if there is none.

    Args:
      path: file or folder.
      split: the file's name (``instances_val2017``) or the end of it (``val2017``, which prefers ``instances_``).

    Raises:
      NoSplitError: no file of the split.
      UserError: several files and no split.
    """
    if path.is_file():
        return path
    found = sorted(p for base in (path / "annotations", path) for end in ("json", "csv") for p in base.glob(f"*.{end}"))
    if not found or xml_files(path):
        return None
    chosen = found
    if split is not None:
        exact = [file for file in found if file.stem in (split, f"instances_{split}")]
        chosen = exact or [file for file in found if file.stem.endswith(f"_{split}")]
    if len(chosen) != 1:
        said = "several files" if split is None else f"{len(chosen)} files for the split {split!r}"
        kind = UserError if chosen else NoSplitError
        raise kind(f"{path}: {said}; choose the split among {', '.join(file.stem for file in found)}")
    return chosen[0]


def json_content(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}): export the annotations again") from error


def image_folder(file: Path, names: Sequence[str]) -> Path:
    """Folder that the first image found at all lies in.

    Looked for in one called like the end of the file's name (``instances_val2017.json``: ``val2017``), in ``images``,
    and beside the file; there and one folder up.
    """
    end = file.stem.rpartition("_")[2]
    folders = [base / below for base in (file.parent, file.parent.parent) for below in (end, "images", "")]
    folders += [file.parent.parent / "images" / end]
    for name in names[:20]:
        for folder in folders:
            if (folder / name).is_file():
                return folder
    return file.parent.parent / end if file.parent.name == "annotations" else file.parent


def class_names(images: Iterable[AnnotatedImage]) -> tuple[str, ...]:
    """Names of the classes that occur, sorted."""
    return tuple(sorted({each.label for image in images for each in image.objects if each.label}))


def from_xywh(values: Any) -> Box | None:
    """Corner, width, height → xyxy; None unless they are four numbers."""
    try:
        x, y, width, height = map(float, values)
    except (TypeError, ValueError):
        return None
    return x, y, x + width, y + height


def reason(error: Exception) -> str:
    """What was wrong with a file's structure, for an error's message."""
    return f"no {error}" if isinstance(error, KeyError) else str(error)
