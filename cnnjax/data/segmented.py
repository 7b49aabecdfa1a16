"""Images with a class for every pixel: the source that segmenters train on.

splits = segmented.load("camvid", ignored=(11,))
splits.train[0]      # {"image": uint8 [h, w, 3], "segmentation": uint8 [h, w], 255 where there is no class}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import annotations, catalog, masked
from cnnjax.data.formats import mask_folders, tfds
from cnnjax.data.masked import Masked, Segmented
from cnnjax.data.sources import Source, Subset, innermost
from cnnjax.data.splits import USUAL, Fractions, Splits, complete, say
from cnnjax.types import IGNORED, UserError


def _base(source: Source) -> tuple[Masked, np.ndarray]:
    base, places = innermost(source)
    assert isinstance(base, Masked)
    return base, places


def sizes(source: Source) -> list[tuple[int, int]]:
    """(height, width) of every image, by its header."""
    base, places = _base(source)
    return base.sizes(places)


def class_pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class, and pixels of all the images that show it, int64 [classes]; every mask is read."""
    base, places = _base(source)
    counts = [np.bincount(base.labels(i).ravel(), minlength=IGNORED + 1)[: len(base.classes)] for i in places]
    pixels = np.array(counts, np.int64).reshape(-1, len(base.classes))
    return pixels.sum(0), (pixels.sum(1, keepdims=True) * (pixels > 0)).sum(0)


def load(
    name: Path | str,
    classes: Sequence[str] = (),
    ignored: Sequence[int] = (),
    fractions: Fractions = USUAL,
    data_dir: Path | None = None,
) -> Splits:
    """Opens images with masks, and prints where each split comes from.

    Args:
      name: a folder of images and masks, see `mask_folders`; annotations with outlines, such as COCO's; or one of
        `masked.PREPARED` of tensorflow-datasets.
      classes: names of the classes 0, 1, … of a folder; none: those in one of its files, else the values of the
        training masks.
      ignored: values of a folder's masks that are no class, beside 255.
      fractions: shares to cut off where there are no such splits.
      data_dir: folder of the tfds data sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: as `mask_folders.find` and ``class_names``, `catalog.load_annotated`, `masked.prepared`; more classes
        than a byte has values; classes or ignored values of other than a folder; annotations without outlines.
    """
    root = Path(name).expanduser()
    if root.exists() or catalog.is_folder(str(name)):
        try:
            return _folder(root, classes, ignored, fractions)
        except mask_folders.NoMasksError as error:
            found = _outlined(root, error, fractions)
    else:
        masked.layout(str(name))
        directory = tfds.tfds_directory(data_dir)
        texts = catalog.tfds_splits(str(name), directory, {}, fractions, None)
        say(name, texts)
        parts = {part: masked.prepared(str(name), each, directory) for part, each in texts.items()}
        found = Splits(parts["train"], parts["valid"], parts.get("test"))
    if classes or ignored:
        raise UserError(f"{name} has its classes: --classes and --ignore are for folders of masks")
    if len(found.train.classes) > IGNORED:
        raise UserError(f"{name}: {len(found.train.classes)} classes, at most {IGNORED} fit")
    return found


def _outlined(root: Path, error: UserError, fractions: Fractions) -> Splits:
    try:
        found = catalog.load_annotated(root, fractions.test, fractions.valid, usual=fractions.usual)
    except annotations.NoAnnotationsError as other:
        raise UserError(f"{error}; or annotations with outlines, but {other}") from other
    base, _ = innermost(found.train)
    assert isinstance(base, annotations.AnnotatedImages)
    if not any(shape is not None for record in base.annotations.records for shape in record.shapes):
        raise UserError(f"{root}: its annotations have boxes, but no outlines: segmentation wants polygons or masks")
    painted = {part: _painted(source) for part, source in found.given.items()}
    return Splits(painted["train"], painted["valid"], painted.get("test"))


def _painted(source: Source) -> Source:
    """Source of masks in place of boxes; a part stays the same part."""
    base, places = innermost(source)
    assert isinstance(base, annotations.AnnotatedImages)
    painted = masked.Outlined(base)
    return painted if len(places) == len(base) else Subset(painted, places)


def _folder(root: Path, classes: Sequence[str], ignored: Sequence[int], fractions: Fractions) -> Splits:
    parts: dict[str, Any] = {**folder_parts(root, classes, ignored)}
    origins = {part: f"its {part}" for part in parts if part != "all"}
    whole = parts.pop("train", None) or parts.pop("all")
    return complete(root, whole, None, parts, origins, fractions)


def folder_parts(root: Path, classes: Sequence[str] = (), ignored: Sequence[int] = ()) -> dict[str, Segmented]:
    """Images and masks of a folder by split; ``all`` where it has none. Arguments and errors as for `load`."""
    parts = mask_folders.find(root)
    names = tuple(classes) or mask_folders.class_names(root)
    if not names:
        found = mask_folders.values(parts.get("train") or parts["all"])
        highest = max((value for value in found if value not in (*ignored, IGNORED)), default=0)
        names = tuple(str(value) for value in range(int(highest) + 1))
        print(f"{root}: no names of classes (--classes gives them); {len(names)} by the values of the masks")
    if len(names) > IGNORED:
        raise UserError(f"{root}: {len(names)} classes; 255 is the value of pixels that have none, so at most 255 fit")
    return {part: Segmented(tuple(pairs), names, tuple(ignored)) for part, pairs in parts.items()}
