"""The models: one architecture family per file, each with a table ``VARIANTS`` of named models.

Classifiers lie here, others in ``detection``, ``segmentation`` and ``super_resolution``. To add a family, add a file
with a table; no other file changes. A variant is a Flax module class, or a ``functools.partial`` of one, that needs no
argument; its ``num_classes`` is the paper's by default. In a classifier None builds no head; every classifier is a
``types.Backbone``: it has ``image_shape``, ``aux_weights`` and ``strides``. By its field ``window``
``nn.to_fully_convolutional`` slides it over larger images.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as linen
import numpy as np

from cnnjax.types import UserError

KINDS = ("classification", "detection", "segmentation", "super_resolution")


@functools.cache
def _variants(kind: str) -> dict[str, Callable[..., linen.Module]]:
    """Every variant of every module of one kind; ValueError if two have the same name."""
    package = __name__ if kind == "classification" else f"{__name__}.{kind}"
    found: dict[str, Callable[..., linen.Module]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        table = {} if info.ispkg else getattr(module, "VARIANTS", {})
        if twice := found.keys() & table.keys():
            raise ValueError(f"expected each variant once, got {sorted(twice)} again in {module.__name__}")
        found.update(table)
    return found


Kind = Literal["classification", "detection", "segmentation", "super_resolution"]


def names(kind: Kind = "classification") -> list[str]:
    """Names of all variants of a kind, sorted.

    Raises:
      UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of models {kind!r}; kinds: {', '.join(KINDS)}")
    return sorted(_variants(kind))


def create(name: str, /, **overrides: Any) -> linen.Module:
    """Creates the model called ``name``.

    Args:
      name: one of ``names()``, or of another kind's.
      **overrides: fields of the model to set, such as ``num_classes`` (None: no head), ``dtype``. Lists are taken as
        tuples. The field ``base`` of detectors and segmenters is a network without its head, its name, or its name and
        fields: ``("mobilenet_v1", {"width": 0.75})``.

    Returns:
      A Flax module that is a ``types.Backbone``; ``apply(variables, images, train=False)`` gives (logits, endpoints).

    Raises:
      UserError: unknown name (the message lists similar names and all choices), unknown field, or ``num_classes`` that
        is no number of classes.
    """
    variants = {name: make for kind in KINDS for name, make in _variants(kind).items()}
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise UserError(f"unknown model {name!r}{hint} choices: {', '.join(sorted(variants))}")
    fields = [f for f in inspect.signature(variants[name]).parameters if f not in ("parent", "name")]
    if unknown := sorted(overrides.keys() - set(fields)):
        raise UserError(f"{name} has no field {', '.join(unknown)}; its fields: {', '.join(fields)}")
    classes = overrides.get("num_classes")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1):
        raise UserError(f"num_classes is a number of classes, from 1, or None for no head; got {classes!r}")
    return variants[name](**{key: _field(key, value) for key, value in overrides.items()})


def _field(key: str, value: Any) -> Any:
    if key == "base" and isinstance(value, str | list | tuple):
        base, fields = (value, {}) if isinstance(value, str) else value
        return create(base, **{**fields, "num_classes": None})
    plain = isinstance(value, list) or type(value) is tuple  # a named tuple stays one
    return tuple(_field("", each) for each in value) if plain else value
