"""The models: one architecture family per file, each with a table ``VARIANTS`` of named models.

To add a family, add a file with a table; no other file changes. A variant is a Flax module class, or a
``functools.partial`` of one, that needs no argument; its ``num_classes`` is the paper's by default, and None
builds no head. Every model is a ``types.Backbone``: it has ``image_shape``, ``aux_weights`` and ``strides``.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import numpy as np

from cnnjax.types import UserError


@functools.cache
def _variants() -> dict[str, Callable[..., linen.Module]]:
    """Every variant of every module of this package; ValueError if two have the same name."""
    found: dict[str, Callable[..., linen.Module]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        table = getattr(module, "VARIANTS", {})
        if twice := found.keys() & table.keys():
            raise ValueError(f"expected each variant once, got {sorted(twice)} again in {module.__name__}")
        found.update(table)
    return found


def names() -> list[str]:
    """Names of all variants, sorted."""
    return sorted(_variants())


def create(name: str, /, **overrides: Any) -> linen.Module:
    """Creates the model called ``name``.

    Args:
      name: one of ``names()``.
      **overrides: fields of the model to set, such as ``num_classes`` (None: no head), ``dtype``.

    Returns:
      A Flax module that is a ``types.Backbone``; ``apply(variables, images, train=False)`` gives (logits, endpoints).

    Raises:
      UserError: unknown name (the message lists similar names and all choices), unknown field, or ``num_classes`` that
        is no number of classes.
    """
    variants = _variants()
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise UserError(f"unknown model {name!r}{hint} choices: {', '.join(names())}")
    fields = [f for f in inspect.signature(variants[name]).parameters if f not in ("parent", "name")]
    if unknown := sorted(overrides.keys() - set(fields)):
        raise UserError(f"{name} has no field {', '.join(unknown)}; its fields: {', '.join(fields)}")
    classes = overrides.get("num_classes")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1):
        raise UserError(f"num_classes is a number of classes, from 1, or None for no head; got {classes!r}")
    return variants[name](**overrides)
