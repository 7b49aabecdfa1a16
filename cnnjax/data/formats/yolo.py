"""YOLO's text labels, Roboflow's, ultralytics' and Darknet's: a file for each image with a line for each object."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from cnnjax.data.formats import annotated, masks
from cnnjax.data.formats.annotated import AnnotatedImage, Labelled, NoSplitError, Read
from cnnjax.data.formats.images import header_size, is_image
from cnnjax.types import UserError

EXPECTED = "data.yaml, or images/ and labels/*.txt with classes.txt (YOLO)"
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")  # their names here → in the YAML file
NAMES = ("classes.txt", "obj.names")
THREADS = 8
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast, where PyYAML has it


def read_annotations(path: Path, split: str | None) -> Read | None:
    """Reads the images that a YAML file names, or those in a folder ``images`` beside ``labels``.

    The label file of ``…/images/a.jpg`` is ``…/labels/a.txt``, else ``a.txt`` beside the image; without one the image
    has no objects. A line is a class, 0 the first, then center x, center y, width, height, or the corners x, y of a
    polygon, all as shares of the image's sides.

    Raises:
      NoSplitError: the YAML file, or else ``images``, has no such split.
      UserError: it is damaged, its images are not there, there are no names of classes, or fewer than the labels count.
    """
    file = _yaml_file(path)
    if file is not None:
        content = _yaml(file)
        return None if content is None else _read(file, _counted(content, file), _listed(file, content, split))
    if not ((path / "labels").is_dir() and (path / "images").is_dir()):
        return None
    images = _split(path / "images", split)
    return _read(path, _names_beside(path), _images(images))


def _split(images: Path, split: str | None) -> Path:
    """Folder of a split in ``images``, or ``images`` for all."""
    if split is None:
        return images
    there = {each.name: each for each in sorted(images.iterdir()) if each.is_dir()}
    wanted = SPLITS.get(split.lower(), split)
    for name, folder in there.items():
        if SPLITS.get(name.lower(), name) == wanted:
            return folder
    raise NoSplitError(f"{images}: no folder of the split {split!r}; folders there: {', '.join(there) or 'none'}")


def _yaml_file(path: Path) -> Path | None:
    """Path of the YAML file: ``path`` itself, or the first with names of classes in a folder."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return path
    found = sorted(each for each in path.glob("*.y*ml") if each.suffix in (".yaml", ".yml")) if path.is_dir() else []
    return next((file for file in found if _yaml(file) is not None), None)


def _yaml(file: Path) -> dict[str, Any] | None:
    """Content of a YAML file with names of classes and a split; None if it is about something else."""
    try:
        content = yaml.load(file.read_bytes(), _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())[:200]}): export it again") from error
    known = isinstance(content, dict) and "names" in content and content.keys() & set(SPLITS.values())
    return content if known else None


def _names(names: Any, file: Path) -> tuple[str, ...]:
    """Names of the classes, from a list or from numbered names."""
    if isinstance(names, Mapping) and names.keys() == set(range(len(names))):
        names = [names[place] for place in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names of the classes are expected as a list, or numbered from 0")
    return tuple(_plain(name, "a name of a class", file) for name in names)


def _plain(value: Any, what: str, file: Path) -> str:
    """Text of a word or number; lists are refused unseen, as a few lines of YAML can stand for gigabytes of them."""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):  # YAML reads no and on as truth values
        raise UserError(f"{file}: {what} is a {type(value).__name__}; expected one word: write it in quotes")
    return str(value).strip()


def _counted(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Names of the classes, as many as ``nc`` says where it is there."""
    names, count = _names(content["names"], file), content.get("nc")
    if count is not None and (said := _plain(count, "nc", file)) != str(len(names)):
        raise UserError(f"{file}: nc is {said[:40]}, but {len(names)} classes have names: correct one of the two")
    return names


def _names_beside(folder: Path) -> tuple[str, ...]:
    """Names of the classes in a file with one on each line."""
    for base in (folder, folder / "labels", folder.parent):
        if (file := _yaml_file(base)) is not None and (content := _yaml(file)) is not None:
            return _counted(content, file)
        for file in [base / name for name in NAMES] + sorted(base.glob("*.names")):
            if file.is_file():
                lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
                return _names([line.strip() for line in lines if line.strip()], file)
    raise UserError(f"{folder}: no names of the classes: add {folder / NAMES[0]} with one on each line, or a data.yaml")


def _listed(file: Path, content: Mapping[str, Any], split: str | None) -> list[Path]:
    """Images of a split, or of all; each is named by a folder, by a text file of paths, or by a list of such."""
    there = [key for key in ("train", "val", "test") if content.get(key)]
    wanted = there if split is None else [SPLITS.get(split.lower(), split)]
    if unknown := [key for key in wanted if key not in there]:
        raise NoSplitError(f"{file}: no split {unknown[0]!r}; splits there: {', '.join(there)}")
    found: dict[Path, None] = {}
    for key in wanted:
        for entry in content[key] if isinstance(content[key], list) else [content[key]]:
            found |= dict.fromkeys(_entry(file, content, key, _plain(entry, key, file)))
    return list(found)


def _entry(file: Path, content: Mapping[str, Any], key: str, entry: str) -> list[Path]:
    entry, root = map(annotated.portable, (entry, _plain(content.get("path") or "", "path", file)))
    bases = [file.parent / root, file.parent.parent / root, file.parent]
    # Roboflow writes ../train/images for the folder train beside the file.
    places = [base / name for base in bases for name in (entry, entry.removeprefix("../"))]
    for place in places:
        if place.is_dir():
            return _images(place)
        if place.is_file():
            lines = place.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            return [place.parent / annotated.portable(line.strip()) for line in lines if line.strip()]
    tried = ", ".join(dict.fromkeys(map(str, places)))
    raise UserError(f"{file}: {key} is {entry}, and there is no such folder or list: looked for {tried}")


def _images(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if is_image(each))


def _labels(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[-2::-1].index("images")
        beside = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
        if beside.is_file():
            return beside
    return image.with_suffix(".txt")


def _read(source: Path, names: Sequence[str], images: Sequence[Path]) -> Read:
    files = [_labels(image) for image in images]
    if images and not any(file.is_file() for file in files):
        raise UserError(f"{source}: none of its {len(images)} images has a label file, such as {files[0]}")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(header_size, images))
    read = []
    for image, file, size in zip(images, files, sizes, strict=True):
        objects = [] if size is None or not file.is_file() else list(_objects(file, names, size, source))
        read.append(AnnotatedImage(image.stem, file, image, size, objects))
    return Read(read, tuple(dict.fromkeys(names)))


def _objects(file: Path, names: Sequence[str], size: tuple[int, int], source: Path) -> Iterator[Labelled]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            place, *shares = map(float, line.split())
            if place != int(place) or place < 0:
                raise ValueError
        except (ValueError, OverflowError):
            yield Labelled(
                f"line {number}", "", fault=("unreadable", f"no class and numbers, but {line.strip()[:80]!r}")
            )
            continue
        if place >= len(names):
            cure = "add the names that are missing"
            raise UserError(
                f"{file}, line {number}: class {int(place)}, but {source} names {len(names)} classes: {cure}"
            )
        yield _object(f"line {number}", names[int(place)], shares, size)


def _object(name: str, label: str, shares: Sequence[float], size: tuple[int, int]) -> Labelled:
    width, height = size
    if len(shares) == 4:
        x, y, w, h = shares
        box = annotated.from_xywh(((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
        return Labelled(name, label, box) if box else Labelled(name, label, fault=("unreadable", "no four numbers"))
    outline = masks.polygon(share * side for share, side in zip(shares, size * (len(shares) // 2), strict=False))
    box = masks.box([outline])
    if len(shares) % 2 or box is None:
        what = f"{len(shares)} numbers after the class, where 4, or pairs from 6 on, are expected"
        return Labelled(name, label, fault=("unreadable", what))
    return Labelled(name, label, box, shape=(outline,))
