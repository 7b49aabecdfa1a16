"""Splits of class folders: finds the folders of train, valid and test by their names; what is unclear is an error."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnjax.data.formats.folders import Folder
from cnnjax.data.formats.images import SUFFIXES
from cnnjax.types import UserError

# Split → its usual names; folders are called so in any case, or with the same words around all (seg_train, seg_test).
NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "evaluation"),
}
_PARTS = {name: part for part, names in NAMES.items() for name in names}
_AROUND = re.compile(rf"(.*[^a-z])?({'|'.join(_PARTS)})([^a-z].*)?")


def open_parts(parts: Mapping[str, Path], channels: int = 3) -> dict[str, Folder]:
    """Opens the class folders that `find` found.

    An evaluation split may lack classes; its labels are those of the training split.

    Raises:
      UserError: see ``Folder.open``.
    """
    first = next(iter(parts))  # train or all
    whole = Folder.open(parts[first], channels)
    others = {part: Folder.open(path, channels, whole.classes) for part, path in parts.items() if part != first}
    return {first: whole, **others}


def find(root: Path) -> dict[str, Path]:
    """Folders of train, and of valid and test where they are, each with a sub-folder per class; else ``root`` as all.

    A download may wrap them once more: ``root/photos/train/cat``, ``root/train/train/cat``.

    Raises:
      UserError: folders are called like splits but have no class folders, there is no train among them, two are of
        the same split, or other folders with images lie beside them.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with a sub-folder of images for each class")
    named, full = _named(_folders(root)), list(filter(_has_images, _folders(root)))
    if not named and len(full) == 1 and not _is_class(_named(_folders(full[0]))):
        root = full[0]
        named, full = _named(_folders(root)), list(filter(_has_images, _folders(root)))
    if _is_class(named):
        return {"all": root}
    parts = {part: _unzipped(paths[0]) for part, paths in named.items()}
    unused = [path.name for path in full if all(path not in paths for paths in named.values())]
    if problem := _problem(named, parts, unused):
        understood = ", ".join(f"{path.relative_to(root)} as {part}" for part, path in parts.items())
        raise UserError(f"{root}: understood {understood}; but {problem}")
    return parts


def _problem(named: dict[str, list[Path]], parts: dict[str, Path], unused: Sequence[str]) -> str:
    """Reason for which the folders are no splits, with the cure; "" where they are."""
    if twice := next((paths for paths in named.values() if len(paths) > 1), None):
        return f"{' and '.join(path.name for path in twice)} are the same split: merge them, or remove one"
    rename = "if these are classes, give them other names, such as a plural"
    if flat := [path.name for path in parts.values() if not _has_classes(path)]:
        names = " and ".join(flat)
        return f"there are no class folders in {names}: make one of images for each class, or move {names}; {rename}"
    if "train" not in parts:
        return f"it has no folder train with a sub-folder for each class: add it, or remove the other splits; {rename}"
    if unused:
        names = ", ".join(unused[:5]) + (", …" if len(unused) > 5 else "")
        return f"the images in {names} beside them would not be used: merge them into a split, or move them; {rename}"
    return ""


def _is_class(named: dict[str, list[Path]]) -> bool:
    # A train is also a vehicle: where no other folder is called like a split, one with mere images in it is a class.
    trains = named.get("train", [])
    return not named or (len(named) == len(trains) == 1 and _has_files(trains[0]) and not _has_classes(trains[0]))


def _named(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Split → the folders that are called like it."""
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for path in folders:
        if match := _AROUND.fullmatch(path.name.lower()):
            before, name, after = match.groups(default="")
            groups.setdefault((before, after), {}).setdefault(_PARTS[name], []).append(path)
    exact = groups.pop(("", ""), {})
    # Words around one name alone may be a class, such as train_station.
    chosen = exact or next((group for group in groups.values() if "train" in group and len(group) > 1), {})
    return {part: chosen[part] for part in NAMES if part in chosen}


def _unzipped(path: Path) -> Path:
    """Folder of the same name within, where it is the only one."""
    inner = _folders(path)
    alone = len(inner) == 1 and inner[0].name.lower() == path.name.lower() and not _has_files(path)
    return inner[0] if alone else path


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def _has_files(path: Path) -> bool:
    """True where images lie in the folder itself."""
    return any(map(_is_image, os.listdir(path)))


def _has_classes(path: Path) -> bool:
    """True where a folder in it has images."""
    return any(map(_has_images, _folders(path)))


def _has_images(path: Path) -> bool:
    """True where there are images in the folder or below it; it stops at the first."""
    for _, below, files in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        if any(map(_is_image, files)):
            return True
    return False


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
