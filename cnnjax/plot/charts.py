"""Curves, bars, matrices and points."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnjax.types import Array

_COLOURS = {"train": "tab:blue", "valid": "tab:orange", "test": "tab:green"}
_MOST_CLASSES_WITH_COUNTS = 20  # beyond, the numbers of a confusion matrix would overlap


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


def _spread(places: np.ndarray, gap: float = 0.04) -> np.ndarray:
    """Rising places in 0…1, moved as little as keeps neighbours ``gap`` apart, or less if they are too many."""
    gap = min(gap, 1 / len(places))
    steps = gap * np.arange(len(places))
    lowest = places - steps  # of the first, for the sake of each
    middle = (np.maximum.accumulate(lowest) + np.minimum.accumulate(lowest[::-1])[::-1]) / 2
    return np.clip(middle, 0, 1 - steps[-1]) + steps


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
