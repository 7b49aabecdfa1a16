"""Annotation files: the result of every format's reader, and parts of several readers; `annotations` checks it.

A reader is a module of this package with ``read_annotations(path, split) → Read | None`` (a file or folder, one of its
splits or None for all; None: not this format) and ``EXPECTED``, a few words on its files for the error where no format
is found. Readers are asked in the order of their names, and the first one that does not return None is taken. In a
folder with XML files these are the annotations: its JSON and CSV files are ignored.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.types import UserError

Box = tuple[float, float, float, float]
Polygon = np.ndarray  # float32 [n, 2], corners (x, y) in pixels: COCO has millions, for which tuples take gigabytes


class Runs(NamedTuple):
    """Run-length code of a mask, COCO's: lengths of runs of 0 and 1 in turn, down the columns of ``size``."""

    size: tuple[int, int]  # (height, width)
    counts: tuple[int, ...]


Shape = tuple[Polygon, ...] | Runs
"""Outline of an object: what lies in any of its polygons, or a mask; `masks.rasterize` draws it."""


class NoSplitError(UserError):
    """The data set has no split of this name."""


class Fault(NamedTuple):
    """Fault of an annotation; ``kind`` is a key of `annotations.FAULTS`, ``object`` is empty for the whole file."""

    file: Path
    object: str
    kind: str
    what: str


class Labelled(NamedTuple):
    """One object of an image: xyxy in pixels, perhaps its outline and area; a ``fault`` (kind, what) rules it out."""

    name: str
    label: str
    box: Box = (0, 0, 0, 0)
    difficult: bool = False
    crowd: bool = False
    fault: tuple[str, str] | None = None
    shape: Shape | None = None
    area: float | None = None  # of the object, in pixels; None: the box's


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
    folders = (path / "Annotations", path / "annotations", path)
    found = next((files for folder in folders if (files := sorted(folder.glob("*.xml")))), [])
    return [file for file in found if not file.name.startswith(".")]


def table_file(path: Path, split: str | None) -> Path | None:
    """Path of the JSON or CSV file: ``path`` itself, or one in ``annotations`` or in ``path``; None if there is none.

    ``split`` is the file's name (``instances_val2017``) or the end of it, with or without a year (``val``). A file with
    ``instances_`` before it is preferred.

    Raises:
      NoSplitError: no file of the split.
      UserError: several files and no split.
    """
    if path.is_file():
        return path if path.suffix.lower() in (".json", ".csv") else None
    files = (file for base in (path / "annotations", path) for file in base.glob("*.*"))
    found = sorted(file for file in files if file.suffix.lower() in (".json", ".csv") and not file.name.startswith("."))
    if not found or xml_files(path):
        return None
    chosen = found
    if split is not None:
        ends = rf"{re.escape(split)}(\d{{4}})?"
        exact = [file for file in found if re.fullmatch(rf"(instances_)?{ends}", file.stem)]
        chosen = exact or [file for file in found if re.search(rf"_{ends}$", file.stem)]
    if len(chosen) != 1:
        problem = "several files" if split is None else f"{len(chosen)} files for the split {split!r}"
        kind = UserError if chosen else NoSplitError
        names = ", ".join(file.stem for file in found)
        raise kind(f"{path}: {problem}; choose a --split among {names}, or give one of the files")
    return chosen[0]


def json_content(file: Path) -> Any:
    """Content of a JSON file; raises UserError where it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}): export the annotations again") from error


def image_paths(file: Path, names: Sequence[str]) -> tuple[list[Path], list[Fault]]:
    r"""Paths of images by the names in an annotation file, which may have ``\`` between folders; faults of the names.

    Names are relative to the folder called like the end of the file's name (``instances_val2017.json``: ``val2017``),
    to ``images`` or to the file's own folder; each there and one folder up. Where there is no such folder, as in paths
    of another computer, the only image of that name in one of them is taken, and a fault says so.
    """
    names = [portable(name) for name in names]
    end = file.stem.rpartition("_")[2]
    below = [base / folder for base in (file.parent, file.parent.parent) for folder in (end, "images", "")]
    folders = [*below, file.parent.parent / "images" / end]
    usual = file.parent.parent / end if file.parent.name == "annotations" else file.parent
    folder = next((each for name in names[:20] for each in folders if is_file(each / name)), usual)
    paths = [folder / name for name in names]
    if all(map(is_file, paths)):
        return paths, []
    known: dict[str, set[Path]] = {}
    for each in dict.fromkeys(folders):
        for path in each.iterdir() if each.is_dir() else ():
            known.setdefault(path.name, set()).add(path)
    faults = []
    for i, path in enumerate(paths):
        same = known.get(path.name, set())
        if len(same) == 1 and not is_file(path):
            (paths[i],) = same
            faults.append(Fault(file, names[i], "other folder", f"there is only {paths[i]}"))
    return paths, faults


def portable(name: str) -> str:
    r"""Name of a file with ``/`` between its folders; Windows writes ``\``."""
    return name.replace("\\", "/")


def is_file(path: Path) -> bool:
    """True for a file that is there; False also where there can be none of this name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one with a null character
        return False


def split_folder(path: Path, split: str | None) -> Path | None:
    """Sub-folder of a split, its name in any case, with XML, JSON or CSV files, as Roboflow exports them; or None."""
    if split is None or not path.is_dir():
        return None
    below = sorted(each for each in path.iterdir() if each.is_dir() and each.name.lower() == split.lower())
    ends = ("*.xml", "*.json", "*.csv", "Annotations", "annotations")
    return next((each for each in below if any(next(each.glob(end), None) for end in ends)), None)


def class_names(images: Iterable[AnnotatedImage]) -> tuple[str, ...]:
    """Names of the classes that occur, sorted."""
    return tuple(sorted({each.label for image in images for each in image.objects if each.label}))


def numbers(values: Any) -> tuple[float, ...]:
    """Numbers, or texts of them; nothing where one is none, or where ``values`` is one text."""
    try:
        return () if isinstance(values, str) else tuple(map(float, values))
    except (OverflowError, TypeError, ValueError):
        return ()


def from_xywh(values: Any) -> Box | None:
    """Corner, width, height → xyxy; None unless they are four numbers."""
    if len(found := numbers(values)) != 4:
        return None
    x, y, width, height = found
    return x, y, x + width, y + height


def reason(error: Exception) -> str:
    """Description of an error in a file's structure, for the message of another error."""
    return f"no {error}" if isinstance(error, KeyError) else str(error)
