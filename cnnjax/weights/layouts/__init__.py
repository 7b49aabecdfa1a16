"""Layouts of other publishers' files: names and order of our models' weights by Keras, torchvision and timm.

One family per file, each with a table ``LAYOUTS``: name of a model's class → name of the layout → layout. The name of a
layout begins with "keras" where the file's keys are Keras', else they are torch's. To add a family, add a file with a
table; no other file changes.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as linen

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Layout(NamedTuple):
    """Names and order of the weights of one of our models in another publisher's files.

    Attributes:
      keys: (regular expression of a module's path, template of their name for it); the first that matches all of the
        path counts. In a template ``{1}`` is a group, ``{1+1}`` and ``{2-1}`` its number with one more or less. Keras:
        the layer, or ``layer:weight`` where one of their layers is two of ours. torch: the key without ``.weight``, or
        ``module:weight`` where the last part has a name of its own.
      epsilon: the epsilon of their BatchNorm.
      fields: values of fields that the model must have to compute with these weights what the publisher's model does.
      absent: leaves that they leave out, and the constant that each stands for, such as ``{"scale": 1.0}``.
      flat: torch: path of a dense layer after a flattened feature map → (channels, height, width) of that map, the
        order in which torch flattens it.
      unused: regular expression of the file's keys that a model without auxiliary heads does not use.
    """

    keys: tuple[tuple[str, str], ...]
    epsilon: float | None = None
    fields: Mapping[str, Any] = _NOTHING
    absent: Mapping[str, float] = _NOTHING
    flat: Mapping[str, tuple[int, int, int]] = _NOTHING
    unused: str = ""


@functools.cache
def tables() -> dict[str, Mapping[str, Layout]]:
    """Name of a model's class → its layouts, from every file of this package.

    Raises:
      ValueError: two files have a table for the same class.
    """
    found: dict[str, Mapping[str, Layout]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if twice := found.keys() & module.LAYOUTS.keys():
            raise ValueError(f"expected each class once, got {sorted(twice)} again in {module.__name__}")
        found.update(module.LAYOUTS)
    return found


def for_model(model: linen.Module) -> Mapping[str, Layout]:
    """Layouts of files with weights of ``model``, by name; empty for a class that no table has.

    A subclass without a table of its own has its parent's.
    """
    return next((tables()[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in tables()), _NOTHING)


def with_keys_of(kind: str, table: Mapping[str, Layout]) -> dict[str, Layout]:
    """The layouts in a table whose keys are of this kind: "keras" or "torch"."""
    return {label: layout for label, layout in table.items() if label.startswith("keras") == (kind == "keras")}
