"""Annotation files: the result of every format's reader, and parts of several readers; `annotations` checks it.

A reader is a module of this package with ``read_annotations(path, split) → Read | None`` (a file or folder, one of its
splits or None for all; None: not this format) and ``EXPECTED``, a few words on its files for the error where no format
is found. Readers are asked in the order of their names, and the first one that does not return None is taken. In a
folder with XML files these are the annotations: its JSON and CSV files are ignored.
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
    """Fault of an annotation; ``kind`` is a key of `annotations.FAULTS`, ``object`` is empty for the whole file."""

    file: Path
    object: str
    kind: str
    what: str


class Labelled(NamedTuple):
    """One object of an image: xyxy in pixels; a ``fault`` (kind, what) makes it unusable."""

    name: str
    label: str
    box: Box = (0, 0, 0, 0)
    difficult: bool = False
    crowd: bool = False
    fault: tuple[str, str] | None = None


class AnnotatedImage(NamedTuple):
    """One image; ``file`` has its annotation, ``size`` is (width, height), None where the file does not say it."""

    id: str | int
    file: Path
    path: Path
    size: tuple[int, int] | None
    objects: list[Labelled]


@dataclass(frozen=True)
class Read:
    """Images of a split as a file describes them, class names in the order of their labels, and other faults."""

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    faults: tuple[Fault, ...] = ()


def xml_files(path: Path) -> list[Path]:
    """XML files in the folder ``Annotations`` of a folder, else in itself, sorted; none if it is no folder."""
    folders = (path / "Annotations", path)
    found = next((files for folder in folders if (files := sorted(folder.glob("*.xml")))), [])
    return [file for file in found if not file.name.startswith(".")]


def table_file(path: Path, split: str | None) -> Path | None:
    """Path of the JSON or CSV file: ``path`` itself, or one in ``annotations`` or in ``path``; None if there is none.

    ``split`` is the file's name (``instances_val2017``) or the end of it (``val2017``, which prefers ``instances_``).

    Raises:
      NoSplitError: no file of the split.
      UserError: several files and no split.
    """
    if path.is_file():
        return path if path.suffix.lower() in (".json", ".csv") else None
    found = sorted(p for base in (path / "annotations", path) for end in ("json", "csv") for p in base.glob(f"*.{end}"))
    if not found or xml_files(path):
        return None
    chosen = found
    if split is not None:
        exact = [file for file in found if file.stem in (split, f"instances_{split}")]
        chosen = exact or [file for file in found if file.stem.endswith(f"_{split}")]
    if len(chosen) != 1:
        problem = "several files" if split is None else f"{len(chosen)} files for the split {split!r}"
        kind = UserError if chosen else NoSplitError
        raise kind(f"{path}: {problem}; choose the split among {', '.join(file.stem for file in found)}")
    return chosen[0]


def json_content(file: Path) -> Any:
    """Content of a JSON file; raises UserError where it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}): export the annotations again") from error


def image_folder(file: Path, names: Sequence[str]) -> Path:
    """Folder of the first image that is found.

    Candidates are the folder called like the end of the file's name (``instances_val2017.json``: ``val2017``),
    ``images`` and the file's own folder; each there and one folder up.
    """
    end = file.stem.rpartition("_")[2]
    folders = [base / below for base in (file.parent, file.parent.parent) for below in (end, "images", "")]
    folders += [file.parent.parent / "images" / end]
    usual = file.parent.parent / end if file.parent.name == "annotations" else file.parent
    return next((folder for name in names[:20] for folder in folders if (folder / name).is_file()), usual)


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
    """Description of an error in a file's structure, for the message of another error."""
    return f"no {error}" if isinstance(error, KeyError) else str(error)
