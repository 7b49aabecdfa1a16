"""Blank figures, and the user's text in them: every character literal, none of them mathematical notation."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnjax import text as texts


def blank(width: float, height: float, suptitle: str = "", layout: Any = "constrained") -> Figure:
    """Empty figure of ``width`` × ``height`` inches with ``suptitle`` above all; ``layout`` as for ``Figure``."""
    figure = Figure((width, height), layout=layout)
    if suptitle:
        figure.suptitle(printable(suptitle), fontsize=11, **literal(suptitle))
    return figure


def legend(owner: Axes | Figure, handles: Mapping[str, Any], **options: Any) -> None:
    """Adds a legend to axes or to a figure: name → the object drawn for it; ``options`` as for ``Axes.legend``."""
    made = owner.legend(list(handles.values()), [""] * len(handles), **options)
    # Set afterwards: matplotlib leaves out labels that begin with "_", and would parse "$".
    for text, name in zip(made.get_texts(), handles, strict=True):
        text.set(text=one_line(name), **literal(name))


def printable(text: str) -> str:
    """Text as ``text.printable`` gives it, with an escape for each character that no installed font has."""
    return "".join(c if c == "\n" or _fonts(c) else ascii(c)[1:-1] for c in texts.printable(text))


def one_line(text: str) -> str:
    """Text as `printable` gives it, line ends escaped too."""
    return printable(texts.one_line(text))


def literal(*texts: str) -> dict[str, Any]:
    """Properties of matplotlib's texts that show ``texts`` literally: no mathematics, and fonts that have them."""
    fonts = [font for text in texts for char in text for font in _fonts(char)[:1]]
    return {"parse_math": False, "fontfamily": [*dict.fromkeys([*rcParams["font.family"], *fonts])]}


@cache
def _fonts(char: str) -> list[str]:
    """Families that have a character: the usual ones if the first of them does, else others, in order."""
    if char.isspace() or char in _characters(None):
        return rcParams["font.family"]
    # The fonts called Last Resort have a frame with a number for every character.
    names = sorted({font.name for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")})
    return [name for name in names if char in _characters(name)]


@cache
def _characters(family: str | None) -> set[str]:
    """Characters of a family's upright font; of the usual font for None."""
    path = font_manager.findfont(font_manager.FontProperties(family=family))
    return set(map(chr, font_manager.get_font(path).get_charmap()))
