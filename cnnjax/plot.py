"""Pictures from plain arrays: each function returns a ``matplotlib.figure.Figure``; `save` writes it.

Nothing here touches ``pyplot``: there is no global state, no window, no figure to close. A notebook shows
a returned figure after ``%matplotlib inline``. Images are ``[h, w, 1 | 3]``, uint8 or float in 0…1.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cnnjax.types import Array

_COLOURS = {"train": "tab:blue", "valid": "tab:orange", "test": "tab:green"}
_MOST_CLASSES_WITH_COUNTS = 20  # beyond, the numbers of a confusion matrix would overlap
_MOST_BOXES_WITH_NAMES = 20  # beyond, names hide the objects


def save(figure: Figure, path: Path | str, dpi: int = 100) -> Path:
    """Writes the figure as PNG under a temporary name beside ``path``, then moves it there.

    A reader never sees half a picture, and a failure leaves an old one as it was. Makes the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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


def curves(records: Iterable[Mapping[str, Any]], suptitle: str = "") -> Figure:
    """Training curves, one panel per quantity, the splits together in it.

    Args:
        records: rows as in ``metrics.jsonl``: ``"step"`` and keys ``"<split>/<quantity>"`` such as
            ``"train/loss"`` and ``"valid/loss"``. A row need not have every key; others are left out.
        suptitle: a line above all.

    Raises:
        ValueError: no row holds such a key.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in records:
        for key, value in row.items():
            split, slash, quantity = key.partition("/")
            if slash:
                series.setdefault(quantity, {}).setdefault(split, []).append((row["step"], value))
    if not series:
        raise ValueError("expected rows with keys such as 'train/loss', got none")
    columns = min(3, len(series))
    rows = ceil(len(series) / columns)
    figure = Figure((4.2 * columns, 3 * rows + 0.3 * bool(suptitle)), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(series) :]:
        axis.remove()
    for axis, (quantity, splits) in zip(axes.flat, series.items(), strict=False):
        _curves_panel(axis, quantity, splits)
    return figure


def confusion(matrix: Array, classes: Sequence[str], suptitle: str = "") -> Figure:
    """A confusion matrix: rows are true classes, columns predictions; the colour is the share of the row.

    Args:
        matrix: counts [k, k]; written into the cells up to 20 classes.
        classes: k names.
        suptitle: a line above all.

    Raises:
        ValueError: the matrix is not [k, k].
    """
    counts, k = np.asarray(matrix), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"expected a matrix [{k}, {k}] for {k} classes, got {list(counts.shape)}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * k, 3.5), 10)
    figure = Figure((side + 2, side + 1), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true")
    if k <= _MOST_CLASSES_WITH_COUNTS:
        axis.set_xticks(range(k), classes, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(k), classes)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[i, j] > 0.5 else "black"
                axis.text(j, i, f"{count:g}", ha="center", va="center", color=colour, fontsize=8)
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


def bars(values: Mapping[str, Mapping[str, float]], label: str, suptitle: str = "") -> Figure:
    """Groups of bars side by side, one colour per series, the value above each bar.

    Args:
        values: group → series → value; a group need not have every series.
        label: of the vertical axis, with its unit.
        suptitle: a line above all.

    Raises:
        ValueError: no value.
    """
    series = list(dict.fromkeys(name for group in values.values() for name in group))
    if not series:
        raise ValueError("expected at least one value, got none")
    figure = Figure((2.5 + len(values) * (0.3 + 0.33 * len(series)), 4), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axis = figure.subplots()
    width = 0.85 / len(series)
    for i, name in enumerate(series):
        places = [place for place, group in enumerate(values.values()) if name in group]
        heights = [group[name] for group in values.values() if name in group]
        shift = (i - (len(series) - 1) / 2) * width
        drawn = axis.bar([place + shift for place in places], heights, width, label=name)
        axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    axis.set_xticks(range(len(values)), list(values))
    axis.set_ylabel(label)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=8)  # inside it would hide a bar
    return figure


def bubbles(points: Mapping[str, tuple[float, float, float]], x_label: str, y_label: str, suptitle: str = "") -> Figure:
    """Named circles at (x, y), their area in proportion to a third number; x on a logarithmic scale.

    Args:
        points: name → (x > 0, y, area ≥ 0).
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        suptitle: a line above all.

    Raises:
        ValueError: no point.
    """
    if not points:
        raise ValueError("expected at least one point, got none")
    x, y, area = np.array(list(points.values()), float).T
    figure = Figure((8, 5.5), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axis = figure.subplots()
    axis.scatter(x, y, 1500 * area / max(area.max(), 1e-12), alpha=0.35, edgecolors="tab:blue")
    axis.set(xscale="log", xlabel=x_label, ylabel=y_label)
    axis.margins(0.12)
    low, high = axis.get_ylim()
    # Names stand in a column beside the axes, in the order of y: at the circles they would cover each other.
    order = np.argsort(y, kind="stable")
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "relpos": (0, 0.5)}
    for i, place in zip(order, _spread((y[order] - low) / (high - low)), strict=True):
        axis.annotate(
            list(points)[i], (x[i], y[i]), (1.03, place), "data", "axes fraction", line, va="center", fontsize=8
        )
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    return figure


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


def _spread(places: np.ndarray, gap: float = 0.04) -> np.ndarray:
    """Rising places in 0…1, moved as little as keeps neighbours ``gap`` apart, or less if they are too many."""
    gap = min(gap, 1 / len(places))
    steps = gap * np.arange(len(places))
    lowest = places - steps  # of the first, for the sake of each
    middle = (np.maximum.accumulate(lowest) + np.minimum.accumulate(lowest[::-1])[::-1]) / 2
    return np.clip(middle, 0, 1 - steps[-1]) + steps


def _show(axis: Axes, image: Array) -> None:
    pixels = np.asarray(image)
    top = 255 if pixels.dtype == np.uint8 else 1
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    axis.imshow(np.clip(pixels, 0, top), cmap="gray", vmin=0, vmax=top)
    axis.set(xticks=[], yticks=[], anchor="N")  # in the middle of its cell it would move a long title out of the figure
    axis.spines[:].set(color="0.7", linewidth=0.5)  # a frame, or a white image would have no edge


def _curves_panel(axis: Axes, quantity: str, splits: Mapping[str, list[tuple[float, float]]]) -> None:
    for split, points in splits.items():
        steps, values = zip(*sorted(points), strict=True)
        marker = "o" if len(points) < 30 else None
        axis.plot(steps, values, label=split, color=_COLOURS.get(split), marker=marker, markersize=3)
    axis.set_title(quantity, fontsize=10)
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


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


def lines(
    series: Mapping[str, tuple[Array, Array]], x_label: str, y_label: str, log: bool = False, suptitle: str = ""
) -> Figure:
    """Named curves in one panel.

    Args:
        series: name → (x, y).
        x_label: below.
        y_label: beside.
        log: whether y is logarithmic.
        suptitle: a line above all.
    """
    figure = Figure((7, 4), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axis = figure.subplots()
    for name, (x, y) in series.items():
        axis.plot(x, y, label=name)
    axis.set(xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
    axis.grid(alpha=0.3)
    if len(series) <= _MOST_CLASSES_WITH_COUNTS:
        axis.legend(fontsize=7)
    return figure


def reliability(bins: Sequence[tuple[int, float, float]], suptitle: str = "") -> Figure:
    """How often predictions of each confidence are right, and how many there are of each.

    Args:
        bins: (count, mean confidence, accuracy), as ``metrics.classification.calibration`` gives them.
        suptitle: a line above all.
    """
    counts, confidence, accuracy = np.array(bins).T
    figure = Figure((4.2, 4.2), layout="constrained")
    figure.suptitle(suptitle, fontsize=11)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    axis.plot(confidence, accuracy, marker="o")
    axis.bar(confidence, counts / counts.sum(), width=0.03, color="tab:orange", alpha=0.5, label="share of predictions")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure
