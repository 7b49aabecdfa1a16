"""Boxes of data sets that tensorflow-datasets prepared, such as ``voc/2007`` and ``coco/2017``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cnnjax.data import preparation
from cnnjax.data.formats import tfds
from cnnjax.data.formats.annotated import AnnotatedImage, Fault, Labelled, Read
from cnnjax.types import UserError

COUNT_FROM_1 = {"voc"}  # data sets whose left and top edges are published as the numbers of pixels, the first being 1


def read(name: str, split: str, directory: Path) -> tuple[Read, tfds.Tfds]:
    """Objects of every image of a split, and the images; all records are read once, no image is decoded.

    The feature ``objects`` has ``bbox`` (ymin, xmin, ymax, xmax as shares of the image) and ``label``, and perhaps
    ``is_difficult``, ``is_crowd`` and ``area``. An image's id is its index among the images.

    Raises:
      UserError: as `tfds.tfds_split`, or the data set has no boxes.
    """
    classes = _classes(name, directory)
    stored = tfds.opened(name, split, directory, classes, 3)
    images, faults = [], []
    for index, record in tqdm(
        stored.parts(), f"boxes of {stored.name}", len(stored), unit="img", delay=2, disable=None
    ):
        path = Path(stored.name) / _file(record, index)
        try:
            width, height, sideways = preparation.measure(record["image"])
        except Exception as error:  # PIL raises any exception for damaged files
            faults.append(Fault(path, "", "unreadable picture", f"{path}: {error}"))
            continue
        size = (height, width) if sideways else (width, height)  # as it is decoded: tfds knows no orientation
        images.append(AnnotatedImage(index, path, path, size, _objects(record["objects"], classes, size, name)))
    return Read(images, classes, tuple(faults)), stored


def _classes(name: str, directory: Path) -> tuple[str, ...]:
    import tensorflow_datasets as tfds_library

    kinds = tfds.features(name, directory)
    objects = getattr(kinds.get("objects"), "feature", {})  # of a Sequence, a dict of features
    label = objects["label"] if "label" in objects and "bbox" in objects else None
    if not (tfds.is_image(kinds.get("image")) and isinstance(label, tfds_library.features.ClassLabel)):
        found = " ".join(repr(kinds).split())
        raise UserError(f"{name} has no uint8 image and objects, each with bbox and label: it has {found}")
    return tuple(label.names)


def _file(record: Mapping[str, Any], index: int) -> str:
    name = record.get("image/filename")
    return name.decode(errors="replace") if name else f"example {index}"


def _objects(objects: Mapping[str, Any], classes: tuple[str, ...], size: tuple[int, int], name: str) -> list[Labelled]:
    if not len(objects):  # tfds gives a list where an image has none
        return []
    labels = np.asarray(objects["label"])
    boxes = np.reshape(objects["bbox"], (-1, 4)).astype(float)[:, [1, 0, 3, 2]] * np.tile(size, 2)
    boxes = boxes.round(3)  # the shares are float32: thousandths of a pixel are not the annotator's
    if tfds.base_name(name) in COUNT_FROM_1:
        boxes[:, :2] -= boxes[:, :2] < boxes[:, 2:]  # equal ones are slips of the mouse: without area
    none = [None] * len(labels)
    difficult, crowd, area = (objects.get(key, none) for key in ("is_difficult", "is_crowd", "area"))
    found = []
    for i, (label, box) in enumerate(zip(labels.tolist(), boxes.tolist(), strict=True)):
        text = classes[label] if 0 <= label < len(classes) else ""
        flags = bool(difficult[i]), bool(crowd[i])
        found.append(Labelled(f"object {i} ({text})", text, tuple(box), *flags, area=area[i] and float(area[i])))
    return found
