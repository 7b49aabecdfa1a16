"""Models by their fields: which of them weights that cnnjax saved are of, and the names of variants."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as linen

from cnnjax.types import UserError
from cnnjax.weights.formats.content import Content

# Fields of training, storage and the size of the head, on which a model's results with its weights do not depend.
FREE = ("num_classes", "dtype", "remat", "dropout", "momentum", "zero_init", "parent", "name")


def fields(model: linen.Module) -> dict[str, Any]:
    """Fields on which the results of a model with its weights depend, in the types that JSON gives back."""
    plain = (bool, int, float, str, tuple, list, type(None))
    known = [f.name for f in dataclasses.fields(model) if f.name not in FREE]
    return json.loads(json.dumps({key: x for key in known if isinstance(x := getattr(model, key), plain)}))


def check(content: Content, model: linen.Module, where: str) -> None:
    """Raises UserError if weights that cnnjax saved fit this model but are those of one that computes other results."""
    if "variant" in content.about:
        if content.about["variant"] not in variants(model):  # another family has other classes
            return
        saved = variants(model)[content.about["variant"]]()
        written, kind = fields(saved), type(saved).__name__
    elif "fields" in content.about:
        try:
            written, kind = dict(json.loads(content.about["fields"])), content.about.get("model", "")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where} is damaged, its header describes no model: fetch or save it again") from error
    else:
        return
    mine = fields(model)
    unlike = {key for key in written.keys() & mine.keys() if written[key] != mine[key]}
    if kind == type(model).__name__ and unlike:
        want, have = (", ".join(f"{key}={of[key]!r}" for key in sorted(unlike)) for of in (written, mine))
        raise UserError(f"{where}: these are weights of a {kind} with {want}, this one has {have}")


def variants(model: linen.Module) -> Mapping[str, Callable[..., linen.Module]]:
    """The variants of the family: those of the module that defines the class of ``model``."""
    return getattr(inspect.getmodule(type(model)), "VARIANTS", {})


def name(model: linen.Module) -> str:
    """The name of the variant that ``model`` is, or is nearest to by its fields; else of its class."""
    return _nearest(model, {}) or type(model).__name__


def changed(model: linen.Module, values: Mapping[str, Any]) -> str | None:
    """The name of the variant with these values of fields that is nearest to ``model`` by the others, if it is one."""
    return _nearest(model, values)


def _nearest(model: linen.Module, values: Mapping[str, Any]) -> str | None:
    mine = fields(model)
    made = {variant: create() for variant, create in variants(model).items()}
    unlike = {
        variant: sum(mine[key] != value for key, value in fields(other).items() if key not in values)
        for variant, other in made.items()
        if type(other) is type(model) and all(getattr(other, key) == value for key, value in values.items())
    }
    nearest = [variant for variant, count in unlike.items() if count == min(unlike.values())]
    return nearest[0] if len(nearest) == 1 else None
