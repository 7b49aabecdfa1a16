"""Charts of numbers: curves, bars, matrices and points."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cnnjax.plot.figure import blank, legend, literal, one_line, printable
from cnnjax.types import Array

_MOST_MEMBERS = 10  # matplotlib's colors repeat after so many
_SPLIT_COLORS = {"train": "tab:blue", "valid": "tab:orange", "test": "tab:green"}
_MOST_CLASSES_WITH_COUNTS = 20  # with more, the numbers of a confusion matrix would overlap


class _Panel(NamedTuple):
    """Panel with a title and the curves below it: name → [(step, value), …] and name → color."""

    title: str
    curves: dict[str, list[tuple[float, float]]]
    colors: Mapping[str, str]


def curves(records: Iterable[Mapping[str, Any]], suptitle: str = "") -> Figure:
    """Training curves: one panel per quantity with the splits in it, and one per split for a family of quantities.

    A quantity with a slash is a member of a family, such as a class: ``"valid/iou/raccoon"`` and
    ``"valid/iou/kangaroo"`` are two curves in the panel "iou, valid". It shows the first 10 members, and its
    title says how many there are if there are more.

    Args:
        records: rows as in ``metrics.jsonl``: ``"step"`` and keys ``"<split>/<quantity>"`` such as
            ``"train/loss"`` and ``"valid/loss"``. A row need not have every key; keys without a slash are left out.
        suptitle: title of the figure.

    Raises:
        ValueError: no row holds such a key.
    """
    panels = _panels(records)
    if not panels:
        raise ValueError("expected rows with keys such as 'train/loss', got none")
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    figure = blank(4.2 * columns, 3 * rows + 0.3 * bool(suptitle), suptitle)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel)
    return figure


def confusion(matrix: Array, classes: Sequence[str], suptitle: str = "") -> Figure:
    """Confusion matrix: rows are true classes, columns predictions; the color is the share of the row.

    Args:
        matrix: counts [k, k]; written into the cells up to 20 classes.
        classes: k names.
        suptitle: title of the figure.

    Raises:
        ValueError: the matrix is not [k, k].
    """
    counts, k = np.asarray(matrix), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"expected a matrix [{k}, {k}] for {k} classes, got {list(counts.shape)}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * k, 3.5), 10)
    figure = blank(side + 2, side + 1, suptitle)
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true")
    if k <= _MOST_CLASSES_WITH_COUNTS:
        names = [one_line(name) for name in classes]
        axis.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor", **literal(*names))
        axis.set_yticks(range(k), names, **literal(*names))
        for (i, j), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[i, j] > 0.5 else "black"
                axis.text(j, i, f"{count:g}", ha="center", va="center", color=color, fontsize=8)
    return figure


def bars(values: Mapping[str, Mapping[str, float]], label: str, suptitle: str = "") -> Figure:
    """Groups of bars side by side, one color per series, the value above each bar.

    Args:
        values: group → series → value; a group need not have every series.
        label: label of the vertical axis, with its unit.
        suptitle: title of the figure.

    Raises:
        ValueError: no value.
    """
    series = list(dict.fromkeys(name for group in values.values() for name in group))
    if not series:
        raise ValueError("expected at least one value, got none")
    figure = blank(2.5 + len(values) * (0.3 + 0.33 * len(series)), 4, suptitle)
    axis = figure.subplots()
    width = 0.85 / len(series)
    handles = {}
    for i, name in enumerate(series):
        places = [place for place, group in enumerate(values.values()) if name in group]
        heights = [group[name] for group in values.values() if name in group]
        shift = (i - (len(series) - 1) / 2) * width
        handles[name] = axis.bar([place + shift for place in places], heights, width)
        axis.bar_label(handles[name], fmt="%.2f", fontsize=8, padding=1)
    axis.set_xticks(range(len(values)), [printable(group) for group in values], **literal(*values))
    axis.set_ylabel(printable(label), **literal(label))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    legend(figure, handles, loc="outside right upper", fontsize=8)  # inside, it would hide a bar
    return figure


def bubbles(points: Mapping[str, tuple[float, float, float]], x_label: str, y_label: str, suptitle: str = "") -> Figure:
    """Named circles at (x, y), their area in proportion to a third number; x on a logarithmic scale.

    Args:
        points: name → (x > 0, y, area ≥ 0).
        x_label: label of the horizontal axis, with its unit.
        y_label: label of the vertical axis, with its unit.
        suptitle: title of the figure.

    Raises:
        ValueError: no point.
    """
    if not points:
        raise ValueError("expected at least one point, got none")
    x, y, area = np.array(list(points.values()), float).T
    figure = blank(8, 5.5, suptitle)
    axis = figure.subplots()
    axis.scatter(x, y, 1500 * area / max(area.max(), 1e-12), alpha=0.35, edgecolors="tab:blue")
    axis.set_xscale("log")
    _label(axis, x_label, y_label)
    axis.margins(0.12)
    low, high = axis.get_ylim()
    # Names stand in a column beside the axes, in the order of y: at the circles they would cover each other.
    names, order = list(points), np.argsort(y, kind="stable")
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "relpos": (0, 0.5)}
    for i, place in zip(order, _separated((y[order] - low) / (high - low)), strict=True):
        beside = axis.annotate(one_line(names[i]), (x[i], y[i]), (1.03, place), "data", "axes fraction", line)
        beside.set(va="center", fontsize=8, **literal(names[i]))
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    return figure


def lines(
    series: Mapping[str, tuple[Array, Array]], x_label: str, y_label: str, log: bool = False, suptitle: str = ""
) -> Figure:
    """Named curves in one panel.

    Args:
        series: name → (x, y).
        x_label: label of the horizontal axis, with its unit.
        y_label: label of the vertical axis, with its unit.
        log: draw y on a logarithmic scale.
        suptitle: title of the figure.
    """
    figure = blank(7, 4, suptitle)
    axis = figure.subplots()
    handles = {name: axis.plot(x, y, label=name)[0] for name, (x, y) in series.items()}
    axis.set_yscale("log" if log else "linear")
    _label(axis, x_label, y_label)
    axis.grid(alpha=0.3)
    if len(series) <= _MOST_CLASSES_WITH_COUNTS:
        legend(axis, handles, fontsize=7)
    return figure


def anchors(sizes: Array, chosen: Array, suptitle: str = "") -> Figure:
    """Sizes of boxes as points, and anchors as rectangles on one center.

    Args:
        sizes: width and height of each box in pixels, [n, 2].
        chosen: those of the anchors, [k, 2].
        suptitle: title of the figure.
    """
    figure = blank(7, 3.5, suptitle)
    left, right = figure.subplots(1, 2)
    left.scatter(*np.asarray(sizes).T, s=4, alpha=0.3, label="boxes")
    left.scatter(*np.asarray(chosen).T, s=40, marker="x", label="anchors")
    _label(left, "width, pixels", "height, pixels")
    left.legend(fontsize=8)
    for i, (width, height) in enumerate(np.asarray(chosen)):
        right.add_patch(Rectangle((-width / 2, -height / 2), width, height, fill=False, edgecolor=f"C{i % 10}"))
    reach = 0.55 * float(np.max(chosen))
    right.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return figure


def reliability(bins: Sequence[tuple[int, float, float]], suptitle: str = "") -> Figure:
    """Reliability diagram: accuracy of the predictions of each confidence, and the share of predictions that have it.

    Args:
        bins: (count, mean confidence, accuracy), as ``metrics.classification.calibration`` gives them.
        suptitle: title of the figure.
    """
    counts, confidence, accuracy = np.array(bins).T
    figure = blank(4.2, 4.2, suptitle)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axis.plot(confidence, accuracy, marker="o")
    axis.bar(confidence, counts / counts.sum(), width=0.03, color="tab:orange", alpha=0.5, label="share of predictions")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def _label(axis: Axes, x_label: str, y_label: str) -> None:
    axis.set_xlabel(printable(x_label), **literal(x_label))
    axis.set_ylabel(printable(y_label), **literal(y_label))


def _separated(places: np.ndarray, gap: float = 0.04) -> np.ndarray:
    """Rising places in 0 … 1, moved as little as possible so that they are ``gap`` apart, or closer if too many."""
    gap = min(gap, 1 / len(places))
    steps = gap * np.arange(len(places))
    lowest = places - steps  # place of the first if only this one were not moved
    middle = (np.maximum.accumulate(lowest) + np.minimum.accumulate(lowest[::-1])[::-1]) / 2
    return np.clip(middle, 0, 1 - steps[-1]) + steps


def _panels(records: Iterable[Mapping[str, Any]]) -> list[_Panel]:
    """Panels of `curves`: one per plain quantity, then one per family and split."""
    plain: dict[str, _Panel] = {}
    families: dict[str, _Panel] = {}
    for row in records:
        for key, value in row.items():
            split, slash, quantity = key.partition("/")
            family, is_member, member = quantity.partition("/")
            if is_member:
                title, name = f"{family}, {split}", member
                panel = families.setdefault(title, _Panel(title, {}, {}))
            elif slash:
                name, panel = split, plain.setdefault(quantity, _Panel(quantity, {}, _SPLIT_COLORS))
            else:
                continue
            panel.curves.setdefault(name, []).append((row["step"], value))
    return [*plain.values(), *map(_shortened, families.values())]


def _shortened(panel: _Panel) -> _Panel:
    """Panel with only its first curves if all would be too many; the title then says so."""
    count = len(panel.curves)
    if count <= _MOST_MEMBERS:
        return panel
    first = dict(islice(panel.curves.items(), _MOST_MEMBERS))
    return panel._replace(title=f"{panel.title}: first {_MOST_MEMBERS} of {count}", curves=first)


def _draw_panel(axis: Axes, panel: _Panel) -> None:
    handles = {}
    for name, points in panel.curves.items():
        steps, values = zip(*sorted(points), strict=True)
        marker, color = "o" if len(points) < 30 else None, panel.colors.get(name)
        (handles[name],) = axis.plot(steps, values, label=name, color=color, marker=marker, markersize=3)
    axis.set_title(one_line(panel.title), fontsize=10, **literal(panel.title))
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(alpha=0.3)
    legend(axis, handles, fontsize=8)
