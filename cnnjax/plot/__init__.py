"""Figures from plain arrays: each function returns a ``matplotlib.figure.Figure``; `save` writes it.

Nothing here touches ``pyplot``: there is no global state, no window, no figure to close. A notebook shows
a returned figure after ``%matplotlib inline``. Images are ``[h, w, 1 | 3]``, uint8 or float in 0 … 1. Text is shown
character by character: "$", "_" and "\\" have no meaning.
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnjax import atomic
from cnnjax.plot.charts import anchors, bars, bubbles, confusion, curves, lines, reliability
from cnnjax.plot.images import feature_maps, filters, image_grid, mistakes, pictures

__all__ = [
    "Figure",
    "anchors",
    "bars",
    "bubbles",
    "confusion",
    "curves",
    "feature_maps",
    "filters",
    "image_grid",
    "lines",
    "mistakes",
    "pictures",
    "reliability",
    "save",
]


def save(figure: Figure, path: Path | str, dpi: int = 100) -> Path:
    """Writes the figure as PNG, ``dpi`` pixels per inch, and returns ``path``; makes the folder.

    A reader never sees half a figure, and a failure leaves an old one as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=dpi)
    return path
