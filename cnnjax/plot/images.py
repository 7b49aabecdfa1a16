"""Pictures of images, kernels, maps and boxes."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from cnnjax.types import Array

_MOST_BOXES_WITH_NAMES = 20  # beyond, names hide the objects


def image_grid(
    images: Sequence[Array] | Array,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    cell: float | None = None,
    suptitle: str = "",
) -> Figure:
    """Images in rows of ``columns``, each under its title.

    Args:
        images: n images [h, w, 1 | 3] or [h, w], uint8 or float in 0…1; sizes may differ.
        titles: n short strings, or None.
        columns: images per row, at most.
        cell: width of one image in inches; None fits ``columns`` of them into 10 inches.
        suptitle: a line above all.

    Raises:
        ValueError: no image, or the number of titles differs from that of images.
    """
    if len(images) == 0 or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"expected images and a title for each, got {len(images)} and {len(titles or ())}")
    columns = min(columns, len(images))
    rows = ceil(len(images) / columns)
    width = cell or min(10 / columns, 2.0)
    tallest = max(np.shape(image)[0] / np.shape(image)[1] for image in images)
    lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    height = width * tallest + 0.19 * lines + 0.04
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure((columns * width, rows * height + 0.4 * bool(suptitle)), layout=tight)
    figure.suptitle(suptitle, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.remove()
    for i, image in enumerate(images):
        _show(axes.flat[i], image)
        if titles is not None:
            axes.flat[i].set_title(titles[i], fontsize=9, pad=3)
    return figure


def mistakes(
    images: Array,
    true: Array,
    predicted: Array,
    probabilities: Array,
    classes: Sequence[str],
    most: int = 25,
) -> Figure:
    """The worst mistakes: highest confidence in the wrong class first.

    Args:
        images: [n, h, w, 1 | 3].
        true: labels [n], int.
        predicted: labels [n], int.
        probabilities: [n, k]; that of the predicted class is the confidence.
        classes: k names.
        most: how many to show.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    wrong = np.flatnonzero(true != predicted)
    confidence = np.asarray(probabilities)[wrong, predicted[wrong]]
    order = np.argsort(-confidence, kind="stable")[:most]
    if not order.size:
        figure = Figure((4, 1))
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return figure
    titles = [
        f"{classes[predicted[i]]} {p:.0%}\nis {classes[true[i]]}"
        for i, p in zip(wrong[order], confidence[order], strict=True)
    ]
    shown = [np.asarray(images[i]) for i in wrong[order]]
    return image_grid(shown, titles, 5, suptitle="worst mistakes: what the model said, and what it is")


def filters(kernel: Array, columns: int = 12) -> Figure:
    """The filters of a first layer, HWIO ``[h, w, 1 | 3, n]``, as n images on one scale; grey is zero.

    Raises:
        ValueError: the kernel does not see 1 or 3 channels.
    """
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        raise ValueError(f"expected a kernel [h, w, 1 or 3, n], got {list(kernel.shape)}")
    scaled = 0.5 + 0.5 * kernel / max(float(np.abs(kernel).max()), 1e-12)
    return image_grid(np.moveaxis(scaled, -1, 0), columns=columns)


def feature_maps(maps: Array, titles: Sequence[str] | None = None, columns: int = 8, suptitle: str = "") -> Figure:
    """The c maps of ``[h, w, c]`` as grey images, each scaled to its own range."""
    maps = np.asarray(maps, np.float32)
    low, high = maps.min(axis=(0, 1)), maps.max(axis=(0, 1))
    scaled = (maps - low) / np.maximum(high - low, 1e-12)
    return image_grid(np.moveaxis(scaled, -1, 0), titles, columns, suptitle=suptitle)


def boxed(
    images: Sequence[Array],
    boxes: Sequence[Array],
    labels: Sequence[Array],
    classes: Sequence[str],
    titles: Sequence[str] | None = None,
    columns: int = 4,
    suptitle: str = "",
) -> Figure:
    """Images in rows of ``columns`` with their boxes, a colour and the name for each class.

    Args:
        images: as for `image_grid`.
        boxes: of each image [k, 4], xyxy in pixels.
        labels: of each image [k], places in ``classes``.
        classes: names.
        titles: as for `image_grid`.
        columns: images per row, at most.
        suptitle: a line above all.

    Raises:
        ValueError: no image, or another number of boxes, labels or titles than of images.
    """
    figure = image_grid(images, titles, columns, 12 / columns, suptitle)
    for axis, corners, places in zip(figure.axes, boxes, labels, strict=True):
        for (left, top, right, bottom), place in zip(np.asarray(corners), np.asarray(places), strict=True):
            colour = f"C{place % 10}"
            # The centre of pixel 0 is at 0 in the axes and at 0.5 in boxes.
            corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
            axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.5))
            if len(corners) <= _MOST_BOXES_WITH_NAMES:
                behind = {"facecolor": colour, "alpha": 0.7, "pad": 0.5, "edgecolor": "none"}
                axis.text(*corner, classes[place], fontsize=7, color="white", bbox=behind, clip_on=True)
    return figure


def _show(axis: Axes, image: Array) -> None:
    pixels = np.asarray(image)
    top = 255 if pixels.dtype == np.uint8 else 1
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    axis.imshow(np.clip(pixels, 0, top), cmap="gray", vmin=0, vmax=top)
    axis.set(xticks=[], yticks=[], anchor="N")  # in the middle of its cell it would move a long title out of the figure
    axis.spines[:].set(color="0.7", linewidth=0.5)  # a frame, or a white image would have no edge
