"""Ragged targets: the boxes of each image in a source, for a batch padded to one number of rows, and for evaluation.

pad = targets.padding("train", source)     # Transform; prints how many rows there are, and why
truths = targets.truths(source)            # for metrics.detection: nothing is cut, in pixels of the files
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cnnjax import text
from cnnjax.data import sources, transforms
from cnnjax.data.annotations import LabelledImages
from cnnjax.data.records import Record
from cnnjax.data.sources import Source
from cnnjax.data.transforms import Transform
from cnnjax.types import UserError

MANY = 1000  # boxes in an image, from which on the user is told what they cost


def records(source: Source) -> list[Record]:
    """Annotations of every image in order, whatever wraps their source.

    Raises:
      UserError: the source is not one of annotated images.
    """
    base, places = sources.innermost(source)
    if not isinstance(base, LabelledImages):
        raise UserError(f"{type(base).__name__} has no annotations of boxes: open it by catalog.load_boxes")
    return [base.annotations.records[place] for place in places]


def truths(source: Source) -> list[dict[str, np.ndarray]]:
    """Objects of every image, as `metrics.detection` takes them; no image is read.

    ``boxes`` are in pixels of the file (``transform.restore`` brings predictions there), ``size`` is (height, width).

    Raises:
      UserError: as `records`.
    """
    return [
        {
            "boxes": record.boxes,
            "labels": record.labels,
            "crowd": record.crowd,
            "difficult": record.difficult,
            "area": record.areas,
            "size": np.array([record.height, record.width]),
        }
        for record in records(source)
    ]


def class_counts(source: Source) -> np.ndarray | None:
    """Number of boxes of each class, and of images with no more than this label (`joint`), int [classes].

    None where images must be read for it.
    """
    base, _ = sources.innermost(source)
    if isinstance(base, LabelledImages):
        found = records(source)
        of_images = [record.image_label for record in found if record.image_label >= 0]
        labels = np.concatenate([*(record.labels for record in found), np.array(of_images, int)])
    elif isinstance(source, sources.Arrays) and {"labels", "box_mask"} <= source.fields.keys():
        labels = source.fields["labels"][source.fields["box_mask"]]
    else:
        return None
    return np.bincount(labels, minlength=len(source.classes))


def padding(parts: Mapping[str, Source], most: int | None = None, *, mosaic: bool = False) -> Transform:
    """Transform that pads the boxes of an example by `transforms.pad_boxes`; prints a line for each part.

    Where there are more boxes than rows, the smallest are cut.

    Args:
      parts: images with annotations, by the name of their split; all get the same number of rows.
      most: rows; None: those that the fullest image needs or, with ``mosaic``, the four fullest together. What is cut
        otherwise is counted in the line.
      mosaic: `views.mosaic` composes examples of four images.

    Raises:
      UserError: as `records`; no image of a part has a box.
    """
    found = {part: records(source) for part, source in parts.items()}
    rows = most or max(_needed(part, each, mosaic) for part, each in found.items())
    for part, each in found.items():
        print(_line(part, each, rows, _needed(part, each, mosaic), mosaic))
    return partial(transforms.pad_boxes, most=rows, cut=most is not None)


def _counts(found: Sequence[Record]) -> np.ndarray:
    return np.array([len(record.boxes) for record in found], int)


def _needed(part: str, found: Sequence[Record], mosaic: bool) -> int:
    counts = np.sort(_counts(found))
    if not counts.any():
        raise UserError(f"{part}: none of its {len(found)} images has a box")
    if not mosaic:
        return int(counts[-1])
    return int(counts[-4:].sum()) if len(counts) >= 4 else 4 * int(counts[-1])  # of fewer, one may occur four times


def _line(part: str, found: Sequence[Record], rows: int, needed: int, mosaic: bool) -> str:
    counts = _counts(found)
    fullest, most = text.one_line(found[int(counts.argmax())].path.name), int(counts.max())
    said = f"{part}: {counts.mean():.1f} boxes in an image, at most {most:,} ({fullest}); room for {rows:,}"
    said += " in a mosaic of four" if mosaic else ""
    over = (counts - rows).clip(0)
    cut = [f"{(over > 0).sum():,} images lose {over.sum():,} of {counts.sum():,} boxes"] if over.any() else []
    cut += [f"mosaics may have {needed:,}"] if mosaic and needed > rows else []
    said += f": {', '.join(cut)}; the smallest are cut" if cut else ""
    return f"{said}; --most-boxes takes fewer" if most > MANY and rows >= most else said
