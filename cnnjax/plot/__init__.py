"""Figures from plain arrays: each function returns a ``matplotlib.figure.Figure``; `save` writes it.

Nothing here touches ``pyplot``: there is no global state, no window, no figure to close. A notebook shows
a returned figure after ``%matplotlib inline``. Images are ``[h, w, 1 | 3]``, uint8 or float in 0 … 1. Text is shown
character by character: "$", "_" and "\\" have no meaning.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cnnjax import atomic
from cnnjax.plot.charts import anchors, bars, bubbles, confusion, curves, lines, reliability
from cnnjax.plot.images import feature_maps, filters, image_grid, mistakes, overlay, pictures, voc_colors

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
    "overlay",
    "pictures",
    "reliability",
    "save",
    "save_animation",
    "save_mask",
    "voc_colors",
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


def save_mask(labels: np.ndarray, path: Path | str) -> Path:
    """Writes classes of pixels, uint8 [h, w], as PNG with Pascal VOC's palette, and returns ``path``; as `save`."""
    image = Image.fromarray(labels).convert("P")
    image.putpalette(voc_colors(256).tobytes())
    return _save_png(image, Path(path))


def save_pixels(pixels: np.ndarray, path: Path | str) -> Path:
    """Writes an image, uint8 [h, w, 1 | 3], as PNG, and returns ``path``; as `save`."""
    return _save_png(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), Path(path))


def _save_png(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path) as file:
        image.save(file, format="PNG")
    return path


def save_animation(figures: Iterable[Figure], path: Path | str, seconds: float = 0.1, dpi: int = 100) -> Path:
    """Writes figures of one size as an endless GIF, each shown for ``seconds``, and returns ``path``.

    A reader never sees half a file.

    Raises:
      ValueError: no figure.
    """
    images = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(dpi)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    if not images:
        raise ValueError("expected at least one figure, got none")
    with atomic.writing(Path(path)) as file:
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 * seconds), "loop": 0}
        images[0].save(file, format="GIF", **options)
    return Path(path)
