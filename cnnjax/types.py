"""Shared types, array conventions, and the three contracts: Example, Backbone, Task.

Images are NHWC: ``uint8 [n, h, w, c]`` on the host, float on the device. Kernels are HWIO. Boxes are
``float [n, 4]``, ``(x_min, y_min, x_max, y_max)`` in pixels. Ragged targets are padded and a ``mask``
marks the real ones. A model returns ``(logits, endpoints)``. Random keys are passed, never stored; the
batch at step s is a pure function of (seed, s). Everything under ``jax.jit`` has a static shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Key = jax.Array
Schedule = Callable[[Any], Any]  # step → learning rate

Example = Mapping[str, Any]
"""One example, a dict of arrays: ``image`` [h, w, c] and what its task needs, each field by one name everywhere.

``label`` int32 []; ``boxes`` float32 [k, 4] xyxy in pixels with ``labels`` int32 [k] and ``box_mask`` bool [k], False
on rows that are only padding, and ``crowd``, ``difficult`` and ``ignore`` (either of them) bool [k]; ``segmentation``
uint8 or int32 [h, w]; ``instance_masks`` bool or uint8 [k, h, w].
"""
Batch = Mapping[str, Array]
"""Examples with every field stacked; in evaluation also ``example_mask`` float32 [n], 0 on rows that only fill up."""

IGNORED = 255  # label in ``segmentation`` of a pixel that does not count, as in Pascal VOC and torchvision

Sums = Mapping[str, Array]  # added over batches, divided last
Rows = Mapping[str, Array]  # [n, …], a row per example, concatenated over batches
Prediction = Mapping[str, Array]  # [n, …] of a batch; without the leading axis of one image

LossFn = Callable[[PyTree, Batch, Key], tuple[Array, tuple[PyTree, Sums]]]
"""(variables, batch, key) → (mean loss, (new model state, sums with their ``count``))."""


class Backbone(Protocol):
    """Attributes of any classifier on which detectors, segmenters and plots rely."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the paper's input."""

    @property
    def aux_weights(self) -> Mapping[str, float]:
        """Endpoint with an auxiliary head's logits → its weight in the loss; empty where there are none."""

    @property
    def strides(self) -> Mapping[str, int]:
        """Endpoint that is a feature map → its total stride in pixels, from shallow to deep."""


class Picture(NamedTuple):
    """Image with the title and the boxes or classes of pixels to draw; ``plot.pictures`` draws it.

    Attributes:
      image: [h, w, 1 | 3], uint8 or float in 0 … 1.
      title: lines above it.
      boxes: [k, 4], xyxy in pixels.
      names: names of the boxes, [k].
      colors: colors of the boxes, [k]: equal numbers are the same color.
      segmentation: class of each pixel, [h, w]; ``IGNORED`` stays as the image is.
      legend: names of these classes.
    """

    image: np.ndarray
    title: str = ""
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    names: tuple[str, ...] = ()
    colors: tuple[int, ...] = ()
    segmentation: np.ndarray | None = None
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Record of functions that ``fit``, ``serving`` and the scripts call, made by a task for one model.

    Attributes:
      loss_fn: the training loss.
      eval_fn: (variables, batch with uint8 images and ``example_mask``) → (sums, rows).
      figures: (sums, rows) → flat figures; in training, without rows, the figures that need them are left out.
      predict: (variables, uint8 images [n, h, w, c]) → dict of arrays [n, …].
      describe: (prediction of one image, number of classes or objects to name at most, None: as many as is usual) → its
        description for JSON.
      draw: (example, prediction of it) → picture; the truth is drawn where the example has it.
      best: the figure by which validation ranks checkpoints, the higher the better: negate an error.
    """

    loss_fn: LossFn
    eval_fn: Callable[[PyTree, Batch], tuple[Sums, Rows]]
    figures: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, float]]
    predict: Callable[[PyTree, Array], dict[str, Array]]
    describe: Callable[[Prediction, int | None], dict[str, Any]]
    draw: Callable[[Example, Prediction], Picture]
    best: str


class UserError(Exception):
    """Error that the user can correct: the message is one line that names the cause and the cure."""
