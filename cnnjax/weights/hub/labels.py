"""Names of classes for the scores of published networks: ImageNet's 1000 with their WordNet ids, COCO's, VOC's."""

import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cnnjax.types import Array, UserError


class Prediction(NamedTuple):
    """One class that a network predicts for an image, with its score."""

    wnid: str
    """WordNet id, such as ``n02124075``."""
    name: str
    """Name, such as ``Egyptian_cat``. Two names stand for two classes each: crane and maillot."""
    score: float


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of the 1000 classes, in the order of published networks' logits."""
    text = importlib.resources.files(__package__).joinpath("imagenet_class_index.json").read_text()
    index = json.loads(text)
    return tuple((wnid, name) for wnid, name in (index[str(i)] for i in range(len(index))))


@functools.cache
def imagenet_index() -> dict[str, int]:
    """WordNet id → index among the 1000 classes."""
    return {wnid: index for index, (wnid, _) in enumerate(imagenet_classes())}


ClassOrder = Literal["imagenet", "imagenet_devkit", "coco", "coco_ids", "voc", "voc_background"]
"""imagenet: by WordNet id; imagenet_devkit: as in ImageNet's development kit, which Darknet took; coco: 80 classes;
coco_ids: categories 1 … 90, of which 10 have no objects (torchvision); voc: 20 classes by name, with voc_background
after the background."""

_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, N/A, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, backpack, umbrella, "
    "N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, "
    "dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, "
    "sink, refrigerator, N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
_VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)


@functools.cache
def class_names(order: ClassOrder) -> tuple[str, ...]:
    """Names of the classes in the order of a network's outputs; ImageNet's have their WordNet ids before them."""
    if order in ("voc", "voc_background"):
        return (*(("background",) if order == "voc_background" else ()), *_VOC.split(", "))
    if order in ("coco", "coco_ids"):
        return tuple(name for name in _COCO.split(", ") if order == "coco_ids" or name != "N/A")
    names = [f"{wnid} {name}" for wnid, name in imagenet_classes()]
    if order == "imagenet_devkit":
        text = importlib.resources.files(__package__).joinpath("imagenet_devkit_order.json").read_text()
        names = [names[place] for place in json.loads(text)]
    return tuple(names)


def decode_predictions(probabilities: Array, top: int = 5) -> list[list[Prediction]]:
    """The ``top`` classes of each image with their names, the highest score first; among equal scores, the first class.

    Args:
      probabilities: [n, 1000]. The scores are returned unchanged: apply a softmax to logits before, if they are to add
        up to 1.
      top: number of classes per image, 1 … 1000.

    Raises:
      UserError: the shape is not [n, 1000], a score is not finite, or ``top`` is out of range.
    """
    return best(probabilities, imagenet_classes(), top)


def best(probabilities: Array, classes: Sequence[tuple[str, str]], top: int) -> list[list[Prediction]]:
    """The ``top`` classes of each image, as ``decode_predictions`` gives them, for other classes.

    Args:
      probabilities: [n, len(classes)].
      classes: (id, name) of each class.
      top: number of classes per image, 1 … len(classes).

    Raises:
      UserError: as ``decode_predictions``.
    """
    scores = np.asarray(probabilities, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise UserError(
            f"expected scores of {len(classes)} classes, [n, {len(classes)}], got shape {list(scores.shape)}"
        )
    if not np.isfinite(scores).all():
        raise UserError("expected finite scores, got NaN or infinity: the weights or the images are damaged")
    if not 1 <= top <= len(classes):
        raise UserError(f"top must be in 1 … {len(classes)}, got {top}")
    first = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(classes[i][0], classes[i][1], float(row[i])) for i in order]
        for row, order in zip(scores, first, strict=True)
    ]
