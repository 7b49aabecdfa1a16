"""Mechanics of settings: ranges in types, flat names across groups, notes on what may differ on resume."""

import dataclasses
import json
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cnnjax.types import UserError

T = TypeVar("T", bound=Any)
MAY_DIFFER = "may differ on resume"
LOCATES = "says where the data lies: may differ on resume if the data is the same"


@dataclass(frozen=True)
class Range:
    """Range of the numbers that a flag may have, never nan or inf."""

    text: str
    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def holds(self, value: float) -> bool:
        """True if ``value`` is one of them."""
        above = value >= self.low if self.with_low else value > self.low
        below = value <= self.high if self.with_high else value < self.high
        return math.isfinite(value) and above and below


MOST = 2**31 - 1  # the largest int32, for counts on the device and random seeds
LARGEST = 1e30  # beyond any sense, but finite as float32
Positive = Annotated[float, Range("above 0", 0, LARGEST, with_low=False)]
NonNegative = Annotated[float, Range("0 or more", 0, LARGEST)]
Fraction = Annotated[float, Range("in 0 … 1, 1 excluded", 0, 1, with_high=False)]
Share = Annotated[float, Range("above 0, at most 1", 0, 1, with_low=False)]
Factor = Annotated[float, Range("in 0.1 … 10", 0.1, 10)]  # of an image's size
PositiveInt = Annotated[int, Range("above 0", 1, MOST)]
NonNegativeInt = Annotated[int, Range("0 or more", 0, MOST)]
Bytes = Annotated[int, Range("0 or more", 0, 2**62)]
Threads = Annotated[int, Range("in 0 … 512", 0, 512)]
Workers = Annotated[int, Range("in 0 … 64", 0, 64)]  # processes that each import JAX
Pixels = Annotated[int, Range("in 1 … 8192", 1, 8192)]  # side of a square image


def _fields(config: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, type with its annotations) of every field; a group's fields take the place of the group."""
    types = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield field.name, value, types[field.name]


def _notes(annotated: Any) -> Iterator[Any]:
    """Metadata of a type and of its arguments."""
    yield from getattr(annotated, "__metadata__", ())
    for part in typing.get_args(annotated):
        yield from _notes(part)


def _wrong(config: Any, prefix: str = "--") -> Iterator[str]:
    for name, value, annotated in _fields(config):
        flag = prefix + name.replace("_", "-")
        if isinstance(value, tuple):
            for place, part in enumerate(value):
                if dataclasses.is_dataclass(part):
                    yield from _wrong(part, f"{flag}.{place}.")
        for note in _notes(annotated):
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(note, Range) and isinstance(number, int | float) and not note.holds(number):
                    most = f", at most {note.high}" if number > note.high and str(note.high) not in note.text else ""
                    yield f"{flag} must be {note.text}{most}, got {number}"


def check(config: Any) -> None:
    """Checks every number of a config against the range in its type; None passes.

    Raises:
      UserError: a number is out of its range; the message names flag, range and value.
    """
    if wrong := list(_wrong(config)):
        raise UserError("; ".join(wrong))


def flat(config: Any) -> dict[str, Any]:
    """Fields of a config and of its groups as JSON gives them back (paths become strings, tuples lists)."""
    fields = {name: value for name, value, _ in _fields(config)}
    return json.loads(json.dumps(fields, default=lambda x: vars(x) if dataclasses.is_dataclass(x) else str(x)))


def noted(config: Any, note: str) -> tuple[str, ...]:
    """Names of the fields whose type has a note, such as ``MAY_DIFFER``."""
    return tuple(name for name, _, annotated in _fields(config) if note in _notes(annotated))


def defaults(config: Any) -> dict[str, Any]:
    """Values as of ``flat``, each the default where its field has one."""
    own = {each.name: each.default for each in dataclasses.fields(config) if each.default is not dataclasses.MISSING}
    return flat(dataclasses.replace(config, **own))


def expanded(config: T) -> T:
    """Copy of ``config`` in which ``~`` at the start of a path is the user's folder; shells leave ``--flag=~/x``."""
    paths = {name: value.expanduser() for name, value, _ in _fields(config) if isinstance(value, Path)}
    return change(config, **paths)


def change(config: T, **values: Any) -> T:
    """Copy of ``config`` with other values; a field of a group is named like one of the config.

    Raises:
      TypeError: a name that neither the config nor a group has.
    """
    own, used = {}, set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in values:
            own[field.name] = values[field.name]
            used.add(field.name)
        elif dataclasses.is_dataclass(value) and (inner := values.keys() & {name for name, *_ in _fields(value)}):
            own[field.name] = change(value, **{name: values[name] for name in inner})
            used |= inner
    if unknown := sorted(values.keys() - used):
        raise TypeError(f"{type(config).__name__} has no {', '.join(unknown)}")
    return dataclasses.replace(config, **own)
