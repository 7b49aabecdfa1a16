"""Tasks: one file each. The card of a run (model.json, ``serving.Card``) names its task; ``named`` imports that file.

``network(create, classes, **head)`` makes the module; ``create(num_classes=…)`` is ``models.create`` with the name and
the fields already given. ``task(model, prepare, classes, **options)`` makes the `Task` of that module; ``prepare``
turns uint8 images into what the model takes. To add a task, add a file; no other file changes.
"""

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import flax.linen as linen

from cnnjax.types import Array, Task, UserError

Prepare = Callable[[Array], Array]
"""uint8 images [n, h, w, c] → what a model takes."""


class Module(Protocol):
    """Definitions that every file in this package has."""

    def network(self, create: Callable[..., linen.Module], classes: Sequence[str], **head: Any) -> linen.Module: ...

    def task(self, model: linen.Module, prepare: Prepare, classes: Sequence[str], **options: Any) -> Task: ...


def mirrors(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Axes of images [n, h, w, c] that each way to mirror along some of ``axes`` flips; the first flips none."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def named(name: str) -> Module:
    """Module of the task called ``name`` in a run's card.

    Raises:
      UserError: no such task; the message lists all tasks.
    """
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    if name not in names:
        raise UserError(f"unknown task {name!r}; tasks: {', '.join(names)}")
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))
