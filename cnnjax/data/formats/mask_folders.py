"""Folders of images beside folders of masks, in which the value of a pixel is the number of its class.

Known arrangements, with or without splits: Pascal VOC (``JPEGImages``, ``SegmentationClass``, lists in
``ImageSets/Segmentation``), ``train`` beside ``trainannot`` (CamVid), ``images`` beside ``masks`` with the splits in
both, or in each split. The mask of ``a.jpg`` is ``a.png``, or ``a_mask.png`` and the like.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cnnjax.data.formats import split_folders
from cnnjax.data.formats.images import files_below
from cnnjax.types import UserError

_IMAGES = ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit")
_MASKS = ("masks", "mask", "labels", "annotations", "annot", "segmentationclass", "segmentations", "trimaps", "gtfine")
_AFTER = ("_mask", "_label", "_labels", "_l", "_gt", "_seg", "_annotation")  # of a mask's name
_NAMES = ("classes.txt", "names.txt", "codes.txt", "labels.txt")
_VOC = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
_EXPECTED = "images beside masks (images/ and masks/, train/ and trainannot/, JPEGImages/ and SegmentationClass/)"


class NoMasksError(UserError):
    """A folder has none of the arrangements."""


class Pair(NamedTuple):
    """Image and its mask."""

    image: Path
    mask: Path


def find(root: Path) -> dict[str, list[Pair]]:
    """Images with their masks by split; those of a folder without splits as ``all``.

    Raises:
      NoMasksError: ``root`` has neither images nor masks.
      UserError: there is no such folder, none of the arrangements, no split train among others, or an image or a split
        without masks.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; expected {_EXPECTED}")
    if not root.is_dir():
        raise NoMasksError(f"{root}: a file; expected a folder with {_EXPECTED}")
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    lists = root / "ImageSets" / "Segmentation"
    if {"jpegimages", "segmentationclass"} <= folders.keys() and lists.is_dir():
        found = _listed(folders["jpegimages"], folders["segmentationclass"], lists)
    else:
        found = {split: _pairs(images, masks) for split, (images, masks) in _beside(root, folders).items()}
    if not found:
        raise NoMasksError(f"{root}: no {_EXPECTED}")
    if not {"all", "train"} & found.keys():
        raise UserError(f"{root}: it has the splits {', '.join(found)}, but no train: add it, or give a folder inside")
    return found


def class_names(root: Path) -> tuple[str, ...]:
    """Names, one in a line, in ``classes.txt``, ``codes.txt``, … or a file ``.names``; Pascal VOC's; else none.

    Raises:
      UserError: the file is no text.
    """
    files = [root / name for name in _NAMES if (root / name).is_file()] or sorted(root.glob("*.names"))
    if not files:
        return tuple(_VOC.split(", ")) if (root / "SegmentationClass").is_dir() else ()
    try:
        return tuple(line.strip() for line in files[0].read_text("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{files[0]} has no names of classes, one in a line: {error}") from error


def read_mask(path: Path, content: bytes | None = None) -> np.ndarray:
    """Numbers of classes, uint8 or int32 [h, w], of an image of one channel or with a palette.

    Args:
      path: file, or name in errors of one whose ``content`` is given.

    Raises:
      UserError: the file cannot be read, or its pixels are colors.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as file:
            mode, values = file.mode, np.asarray(file)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable mask ({' '.join(str(error).split())[:200]})") from error
    if values.ndim != 2:
        cure = "save it with a palette, or with the numbers of the classes in one channel"
        raise UserError(f"{path}: its pixels are colors ({mode}), not numbers of classes: {cure}")
    if values.dtype != bool and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{path}: its pixels are fractions ({mode}), not numbers of classes: save whole numbers")
    return values.astype(np.uint8) if values.dtype == bool or values.max(initial=0) < 256 else values.astype(np.int32)


def _listed(images: Path, masks: Path, lists: Path) -> dict[str, list[Pair]]:
    """Splits of Pascal VOC's lists."""
    found: dict[str, list[Pair]] = {}
    by_stem = {path.stem: path for path in files_below(images)[0]}
    for split, names in split_folders.NAMES.items():
        file = next((lists / f"{name}.txt" for name in names if (lists / f"{name}.txt").is_file()), None)
        if file is None:
            continue
        stems = file.read_text().split()
        if absent := [stem for stem in stems if stem not in by_stem or not (masks / f"{stem}.png").is_file()]:
            raise UserError(f"{file}: {len(absent)} of its images or their masks are not there, such as {absent[0]}")
        found[split] = [Pair(by_stem[stem], masks / f"{stem}.png") for stem in stems]
    return found


def _beside(root: Path, folders: dict[str, Path]) -> dict[str, tuple[Path, Path]]:
    """Split → its folders of images and of masks."""
    suffixed = {name: folders[name + end] for name in folders for end in ("annot", *_AFTER) if name + end in folders}
    images = next((folders[name] for name in _IMAGES if name in folders), None)
    masks = next((folders[name] for name in _MASKS if name in folders), None)
    if images is not None and masks is not None:
        within = {path.name.lower(): path for path in sorted(images.iterdir()) if path.is_dir()}
        splits = {split: name for split, names in split_folders.NAMES.items() for name in names if name in within}
        both = {split: (within[name], masks / within[name].name) for split, name in splits.items()}
        absent = [str(pair[1]) for pair in both.values() if not pair[1].is_dir()]
        if absent and len(absent) < len(both):
            raise UserError(f"{root}: no masks for a split of its images, {' and '.join(absent)}: add them")
        return {"all": (images, masks)} if absent or not both else both
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in split_folders.NAMES.items():
        for name in (name for name in names if name in folders):
            inner = {path.name.lower(): path for path in sorted(folders[name].iterdir()) if path.is_dir()}
            if name in suffixed:
                found[split] = folders[name], suffixed[name]
            elif pair := _beside(folders[name], inner).get("all"):
                found[split] = pair
    if not found and len(suffixed) == 1:
        ((name, beside),) = suffixed.items()
        return {"all": (folders[name], beside)}
    return found


def _pairs(images: Path, masks: Path) -> list[Pair]:
    """Images of a folder with their masks.

    Raises:
      UserError: an image has none, or there is no image.
    """
    by_stem: dict[str, Path] = {}
    for path in files_below(masks)[0]:
        stem = path.stem.lower()
        for name in (stem, *(stem.removesuffix(end) for end in _AFTER)):
            by_stem.setdefault(name, path)
    files = files_below(images)[0]
    if not files:
        raise UserError(f"{images}: no images in it")
    if absent := [path for path in files if path.stem.lower() not in by_stem]:
        cure = "give it the same name as its image, or move the image away"
        raise UserError(f"{images}: {len(absent)} images have no mask in {masks}, such as {absent[0].name}: {cure}")
    return [Pair(path, by_stem[path.stem.lower()]) for path in files]


def values(pairs: Sequence[Pair]) -> np.ndarray:
    """Values that occur in the masks, sorted; each is read."""
    found: set[int] = set()
    for pair in pairs:
        found.update(np.unique(read_mask(pair.mask)).tolist())
    return np.array(sorted(found))
