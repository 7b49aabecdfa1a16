"""ImageNet's 1000 classes: WordNet ids and names for the scores of a network."""

import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import NamedTuple

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
