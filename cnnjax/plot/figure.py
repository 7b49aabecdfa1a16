"""Blank figures, and the user's text in them: every character literal, none of them mathematical notation."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class _QuietFigure(Figure):
    """Figure that draws a frame for each character its font lacks, without printing a warning for each."""

    def draw(self, renderer: Any) -> None:
        with _no_glyph_warnings():
            super().draw(renderer)

    def get_tightbbox(self, *args: Any, **kwargs: Any) -> Any:
        # Notebooks measure a figure before they draw it.
        with _no_glyph_warnings():
            return super().get_tightbbox(*args, **kwargs)


@contextlib.contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def blank(width: float, height: float, suptitle: str = "", layout: Any = "constrained") -> Figure:
    """Empty figure of ``width`` × ``height`` inches with ``suptitle`` above all; ``layout`` as for ``Figure``."""
    figure = _QuietFigure((width, height), layout=layout)
    if suptitle:
        figure.suptitle(printable(suptitle), fontsize=11, parse_math=False)
    return figure


def legend(owner: Axes | Figure, handles: Mapping[str, Any], **options: Any) -> None:
    """Adds a legend to axes or to a figure: name → the object drawn for it; ``options`` as for ``Axes.legend``."""
    made = owner.legend(list(handles.values()), [""] * len(handles), **options)
    # Set afterwards: matplotlib leaves out labels that begin with "_", and would parse "$".
    for text, name in zip(made.get_texts(), handles, strict=True):
        text.set(text=one_line(name), parse_math=False)


def printable(text: str) -> str:
    """Text with "\\n" for each kind of line end, and "?" for characters that UTF-8 cannot encode (in file names)."""
    return "\n".join(text.encode("utf-8", "replace").decode().splitlines())


def one_line(text: str) -> str:
    """Text as `printable` gives it, line ends as spaces."""
    return printable(text).replace("\n", " ")
