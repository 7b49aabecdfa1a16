"""Images with the boxes that can be used, and what is wrong with the others: `annotations.FAULTS` has the kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from cnnjax.data.formats.annotated import AnnotatedImage, Box, Fault, Labelled, Shape, is_file
from cnnjax.data.formats.images import header_size

MOST_SIDE = 2**20  # in pixels: more is a slip, and its boxes would be inexact in float32
ROUNDING = 0.5  # pixels by which a box may leave the image without being a fault; it is clipped in any case


@dataclass(frozen=True)
class Record:
    """One image; each array has a row for each box."""

    id: str | int  # COCO's number, else the name
    path: Path
    width: int  # in pixels, as labelled
    height: int
    boxes: np.ndarray  # float32 [k, 4], xyxy in pixels, inside the image, with area
    labels: np.ndarray  # int32 [k], places in the classes
    difficult: np.ndarray  # bool [k], VOC's flag
    crowd: np.ndarray  # bool [k], COCO's flag: a box around many
    areas: np.ndarray  # float64 [k] in pixels, the objects' as COCO says them, else the boxes'
    shapes: tuple[Shape | None, ...] = ()  # outlines of the objects, see `formats.masks.rasterize`
    image_label: int = -1  # class of an image whose boxes are not known, see `joint`; −1: they are


def usable(image: AnnotatedImage, labels: Mapping[str, int], faults: list[Fault]) -> Record | None:
    """Image with the boxes that can be used, None if its size cannot be; its faults are added to ``faults``."""
    size = image.size or header_size(image.path)
    if size is None:
        kind = "unreadable picture" if is_file(image.path) else "missing picture"
        faults.append(Fault(image.file, "", kind, f"{image.path}, whose size is not written elsewhere"))
        return None
    if max(size) > MOST_SIDE:
        faults.append(
            Fault(image.file, "", "size", f"{size[0]:.6g}×{size[1]:.6g} pixels: correct it in the annotation")
        )
        return None
    kept: dict[tuple[Box, str], Labelled] = {}
    for each in image.objects:
        box, fault = _usable_box(each, size, labels)
        if box is not None and (box, each.label) in kept:
            box, fault = None, ("duplicate", f"xyxy {_text(each.box)}")
        if box is not None:
            kept[box, each.label] = each
        if fault is not None:
            faults.append(Fault(image.file, each.name, *fault))
    if not image.objects:
        faults.append(Fault(image.file, "", "no objects", "nothing is labelled"))
    boxes = np.array([box for box, _ in kept], np.float32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return Record(
        image.id,
        image.path,
        *size,
        boxes,
        np.array([labels[label] for _, label in kept], np.int32),
        np.array([each.difficult for each in kept.values()], bool),
        np.array([each.crowd for each in kept.values()], bool),
        np.array([b if each.area is None else each.area for each, b in zip(kept.values(), areas, strict=True)], float),
        tuple(each.shape for each in kept.values()),
    )


def _usable_box(
    each: Labelled, size: tuple[int, int], labels: Mapping[str, int]
) -> tuple[Box | None, tuple[str, str] | None]:
    """Part of a box inside the image, None if it cannot be used, and the fault if there is one."""
    if each.fault is not None:
        return None, each.fault
    if not all(map(isfinite, each.box)):
        return None, ("unreadable", f"xyxy {_text(each.box)}")
    if each.label not in labels:
        return None, ("unknown class", f"{each.label!r}")
    (left, top, right, bottom), (width, height) = each.box, size
    if right <= left or bottom <= top:
        return None, ("degenerate", f"xyxy {_text(each.box)}")
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside == each.box:
        return inside, None
    where = f"xyxy {_text(each.box)} in a picture of {width}×{height}"
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, ("outside", where)
    beyond = max(abs(a - b) for a, b in zip(inside, each.box, strict=True))
    return inside, ("clipped", where) if beyond > ROUNDING else None


def _text(box: Box) -> str:
    return " ".join(f"{value:g}" for value in box)
