"""Figures of images, boxes, kernels and feature maps."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle

from cnnjax.plot.figure import blank, legend, literal, one_line, printable
from cnnjax.types import IGNORED, Array, Picture

_MOST_BOXES_WITH_NAMES = 20  # with more, names hide the objects


def pictures(pictures: Sequence[Picture], columns: int = 4, cell: float | None = None, suptitle: str = "") -> Figure:
    """Images in rows of ``columns``, each under its title, with named and colored boxes or classes of pixels on it.

    One legend below names the classes of pixels that occur, by the colors of Pascal VOC.

    Args:
        pictures: images of any sizes. ``names`` and ``colors`` may be empty: boxes without names, all of one color.
            More than 20 boxes in a picture are drawn without their names.
        columns: images per row, at most.
        cell: width of one image in inches; None fits ``columns`` of them into 12 inches.
        suptitle: title of the figure.

    Raises:
        ValueError: no picture, or another number of names or colors than of boxes.
    """
    if not pictures:
        raise ValueError("expected at least one picture, got none")
    width = cell or 12 / columns
    columns = min(columns, len(pictures))
    rows = ceil(len(pictures) / columns)
    tallest = max(np.shape(picture.image)[0] / np.shape(picture.image)[1] for picture in pictures)
    lines = max(len(picture.title.splitlines()) for picture in pictures)
    height = width * tallest + 0.19 * lines + 0.04
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = blank(columns * width, rows * height + 0.4 * bool(suptitle), suptitle, tight)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(pictures) :]:
        axis.remove()
    for axis, picture in zip(axes.flat, pictures, strict=False):
        _show(axis, picture.image)
        axis.set_title(printable(picture.title), fontsize=9, pad=3, **literal(picture.title))
        _draw_boxes(axis, picture)
        if picture.segmentation is not None:
            axis.imshow(overlay(picture.segmentation))
    _add_legend(figure, pictures)
    return figure


def voc_colors(count: int) -> np.ndarray:
    """Colors of ``count`` classes, uint8 [count, 3]: bits 0, 3, 6 of a number are the highest of red, and so on.

    Source: the development kit of Pascal VOC, whose masks have this palette.
    """
    number = np.arange(count)[:, None]
    bits = [((number >> (3 * place + np.arange(3))) & 1) << (7 - place) for place in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


def overlay(labels: Array, opacity: float = 0.6) -> np.ndarray:
    """Colors of the classes of pixels, float [h, w, 4] in 0 … 1, clear where a label is ``IGNORED``."""
    labels = np.asarray(labels)
    colors = voc_colors(256)[np.minimum(labels, 255)] / 255
    return np.concatenate([colors, np.where(labels == IGNORED, 0, opacity)[..., None]], axis=-1)


def _add_legend(figure: Figure, pictures: Sequence[Picture]) -> None:
    """Names of the classes of pixels that occur, below the pictures."""
    names, found = next((each.legend for each in pictures if each.legend), ()), set[int]()
    for each in pictures:
        found |= set() if each.segmentation is None else set(np.unique(each.segmentation).tolist())
    shown = [label for label in sorted(found) if label < len(names)]
    if shown:
        patches = {names[label]: Patch(color=voc_colors(256)[label] / 255) for label in shown}
        legend(figure, patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=8)


def image_grid(
    images: Sequence[Array] | Array,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    cell: float | None = None,
    suptitle: str = "",
) -> Figure:
    """Images in rows of ``columns``, each under its title.

    Args:
        images: n images [h, w, 1 | 3] or [h, w], uint8 or float in 0 … 1; sizes may differ.
        titles: n short strings, or None.
        columns: images per row, at most.
        cell: width of one image in inches; None fits ``columns`` of them into 10 inches, none wider than 2.
        suptitle: title of the figure.

    Raises:
        ValueError: no image, or the number of titles differs from that of images.
    """
    if len(images) == 0 or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"expected images and a title for each, got {len(images)} and {len(titles or ())}")
    columns = min(columns, len(images))
    named = zip(images, titles or [""] * len(images), strict=True)
    return pictures(
        [Picture(np.asarray(image), title) for image, title in named], columns, cell or min(10 / columns, 2.0), suptitle
    )


def mistakes(
    images: Sequence[Array] | Array,
    true: Array,
    predicted: Array,
    confidence: Array,
    classes: Sequence[str],
    most: int = 25,
) -> Figure:
    """Worst mistakes: highest confidence in the wrong class first.

    Args:
        images: n images [h, w, 1 | 3], as for `image_grid`.
        true: labels [n], int.
        predicted: labels [n], int.
        confidence: [n], probability of the predicted class.
        classes: k names.
        most: number of images to show.
    """
    true, predicted, confidence = np.asarray(true), np.asarray(predicted), np.asarray(confidence)
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    if not worst.size:
        figure = blank(4, 1, layout=None)
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return figure
    titles = [f"{one_line(classes[predicted[i]])} {confidence[i]:.0%}\nis {one_line(classes[true[i]])}" for i in worst]
    suptitle = "worst mistakes: what the model said, and what it is"
    return image_grid([np.asarray(images[i]) for i in worst], titles, 5, suptitle=suptitle)


def filters(kernel: Array, columns: int = 12) -> Figure:
    """Filters of a first layer, HWIO ``[h, w, 1 | 3, n]``, as n images on one scale; gray is zero.

    Raises:
        ValueError: the kernel does not see 1 or 3 channels.
    """
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        raise ValueError(f"expected a kernel [h, w, 1 or 3, n], got {list(kernel.shape)}")
    scaled = 0.5 + 0.5 * kernel / max(float(np.abs(kernel).max()), 1e-12)
    return image_grid(np.moveaxis(scaled, -1, 0), columns=columns)


def feature_maps(
    feature_maps: Array, titles: Sequence[str] | None = None, columns: int = 8, suptitle: str = ""
) -> Figure:
    """Feature maps ``[h, w, c]`` as c gray images, each scaled to its own range; arguments as for `image_grid`."""
    values = np.asarray(feature_maps, np.float32)
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    scaled = (values - low) / np.maximum(high - low, 1e-12)
    return image_grid(np.moveaxis(scaled, -1, 0), titles, columns, suptitle=suptitle)


def _show(axis: Axes, image: Array) -> None:
    pixels = np.asarray(image)
    top = 255 if pixels.dtype == np.uint8 else 1
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    axis.imshow(np.clip(pixels, 0, top), cmap="gray", vmin=0, vmax=top)
    axis.set(xticks=[], yticks=[], anchor="N")  # in the middle of its cell it would push a long title out of the figure
    axis.spines[:].set(color="0.7", linewidth=0.5)  # a frame: a white image would have no edge


def _draw_boxes(axis: Axes, picture: Picture) -> None:
    count, names, colors = len(picture.boxes), picture.names, picture.colors
    if len(names) not in (0, count) or len(colors) not in (0, count):
        raise ValueError(f"expected {count} names and colors for {count} boxes, got {len(names)} and {len(colors)}")
    for i, (left, top, right, bottom) in enumerate(np.asarray(picture.boxes)):
        color = f"C{colors[i] % 10 if colors else 0}"
        # The center of pixel 0 is at 0 in the axes and at 0.5 in boxes.
        corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.5))
        if names and count <= _MOST_BOXES_WITH_NAMES:
            name = axis.text(*corner, one_line(names[i]), fontsize=7, color="white", clip_on=True, **literal(names[i]))
            name.set_bbox({"facecolor": color, "alpha": 0.7, "pad": 0.5, "edgecolor": "none"})
