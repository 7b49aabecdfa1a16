"""YOLO's boxes: a center within a cell of a grid, and a size as a multiple of an anchor.

Redmon & Farhadi 2017 (YOLOv2), sec. 2 "Direct location prediction": with σ the logistic function, cell (column, row)
and an anchor (p_w, p_h), the box is ``b_x = σ(t_x) + column``, ``b_y = σ(t_y) + row`` in cells, ``b_w = p_w exp(t_w)``,
``b_h = p_h exp(t_h)``. Anchors are (width, height) in pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cnnjax.ops import boxes as box_ops
from cnnjax.ops import wordtree
from cnnjax.types import Array

LARGEST = 20.0  # of the logarithm of a size over its anchor: exp of more overflows float32 in products with pixels


class Grid(NamedTuple):
    """Grid of cells that predict, for each anchor, 4 codes, the objectness, and a number for each class.

    Attributes:
      anchors: (width, height) in pixels.
      classes: number of classes.
      exclusive: whether an object has one class (YOLOv2's softmax) or any of them (YOLOv3's logistic functions).
      scale: see ``decode``.
      parents: where the classes are the nodes of a tree, the parent of each, see ``ops.wordtree`` (YOLO9000).
    """

    anchors: tuple[tuple[float, float], ...]
    classes: int
    exclusive: bool = False
    scale: float = 1.0
    parents: wordtree.Parents = ()

    @property
    def channels(self) -> int:
        """Numbers of a cell: anchors · (5 + classes); 125 for YOLOv2 on VOC, where the chapter has 45 for one of 5
        anchors' codes and objectness and a single set of 20 classes (5 · 5 + 20)."""
        return len(self.anchors) * (5 + self.classes)


class Cells(NamedTuple):
    """Raw outputs of a grid, ``[..., h, w, a, …]``: codes 4, logits of objectness [], logits of classes [classes]."""

    codes: jax.Array
    objectness: jax.Array
    classes: jax.Array


def split(raw: Array, grid: Grid) -> Cells:
    """Numbers of the cells by what they mean, float32; ``raw [..., h, w, a · (5 + classes)]``, anchor by anchor."""
    chex.assert_axis_dimension(raw, -1, grid.channels)
    parts = jnp.asarray(raw, jnp.float32).reshape(*raw.shape[:-1], len(grid.anchors), 5 + grid.classes)
    return Cells(parts[..., :4], parts[..., 4], parts[..., 5:])


def class_probabilities(logits: Array, grid: Grid) -> jax.Array:
    """Probability of each class of an object, ``[..., classes]``; of a node of a tree that it is this or below it."""
    if grid.parents:
        return jnp.exp(wordtree.log_probability(grid.parents, logits))
    return jax.nn.softmax(logits) if grid.exclusive else jax.nn.sigmoid(logits)


def candidates(maps: Sequence[Array], grids: Sequence[Grid], image_shape: tuple[int, int]) -> tuple[Array, Array]:
    """Boxes of all cells and anchors of all grids, with the scores of their classes: objectness times class.

    Args:
      maps: raw outputs ``[n, h, w, a · (5 + classes)]`` of each grid.
      image_shape: height and width of the images in pixels.

    Returns:
      boxes ``[n, k, 4]`` xyxy in pixels, which may leave the image, and scores ``[n, k, classes]`` in 0 … 1; k runs
      over grids, rows, columns, anchors.
    """
    boxes, scores = [], []
    for raw, grid in zip(maps, grids, strict=True):
        cells = split(raw, grid)
        score = jax.nn.sigmoid(cells.objectness)[..., None] * class_probabilities(cells.classes, grid)
        box = decode(cells.codes, jnp.array(grid.anchors), grid.scale, image_shape)
        count = math.prod(box.shape[1:4])
        boxes.append(box.reshape(raw.shape[0], count, 4))
        scores.append(score.reshape(raw.shape[0], count, grid.classes))
    return jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1)


def decode(codes: Array, anchors: Array, scale: float, image_shape: tuple[int, int]) -> jax.Array:
    """Boxes, xyxy in pixels, of raw outputs.

    Args:
      codes: (t_x, t_y, t_w, t_h), ``[..., h, w, a, 4]``.
      anchors: ``[a, 2]``.
      scale: factor by which the offset in the cell is spread about its middle (YOLOv4; Darknet's scale_x_y), else 1.
      image_shape: height and width of the image in pixels, over which the grid of h × w cells lies.

    Returns:
      ``[..., h, w, a, 4]``; they may leave the image.
    """
    chex.assert_shape(anchors, (codes.shape[-2], 2))
    height, width = codes.shape[-4:-2]
    cell = jnp.array([image_shape[1] / width, image_shape[0] / height], jnp.float32)
    offset = (jax.nn.sigmoid(codes[..., :2].astype(jnp.float32)) - 0.5) * scale + 0.5
    center = (offset + corners(height, width)) * cell
    size = jnp.exp(jnp.minimum(codes[..., 2:].astype(jnp.float32), LARGEST)) * jnp.asarray(anchors, jnp.float32)
    return box_ops.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))


def corners(height: int, width: int) -> jax.Array:
    """(column, row) of each cell, ``[height, width, 1, 2]``."""
    return jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1)[:, :, None].astype(jnp.float32)


def encode(boxes: Array, anchors: Array, cell: Array) -> jax.Array:
    """Targets of boxes: offset of the center in its cell, 0 … 1, and logarithms of the size over the anchor's.

    Args:
      boxes: xyxy in pixels, ``[..., 4]``; a box without area has the logarithms of 1e-6 pixels.
      anchors: ``[..., 2]``, the anchor of each box.
      cell: width and height of a cell in pixels, ``[2]``.

    Returns:
      ``[..., 4]``: the inverse of ``decode`` for logits σ⁻¹(offset).
    """
    center, size = jnp.split(box_ops.xyxy_to_cxcywh(boxes), 2, axis=-1)
    place = center / jnp.asarray(cell, jnp.float32)
    return jnp.concatenate([place - jnp.floor(place), jnp.log(jnp.maximum(size, 1e-6) / anchors)], axis=-1)
