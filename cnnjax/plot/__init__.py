"""Pictures from plain arrays: each function returns a ``matplotlib.figure.Figure``; `save` writes it.

Nothing here touches ``pyplot``: there is no global state, no window, no figure to close. A notebook shows
a returned figure after ``%matplotlib inline``. Images are ``[h, w, 1 | 3]``, uint8 or float in 0…1.
"""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnjax.plot.charts import bars, bubbles, confusion, curves, lines, reliability
from cnnjax.plot.images import boxed, feature_maps, filters, image_grid, mistakes

__all__ = [
    "Figure",
    "bars",
    "boxed",
    "bubbles",
    "confusion",
    "curves",
    "feature_maps",
    "filters",
    "image_grid",
    "lines",
    "mistakes",
    "reliability",
    "save",
]


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
