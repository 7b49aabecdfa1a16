"""Splits of a data set: those that are given, and those that are cut off train; where each is from is printed."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cnnjax import text
from cnnjax.data.formats import split_folders
from cnnjax.data.sources import Source, Subset
from cnnjax.types import UserError

FRACTION = 0.15  # share that is cut off for a split where none is given


class Fractions(NamedTuple):
    """Shares to cut off where there are no such splits.

    Attributes:
      test: share of the images; None: ``usual``, but 0 where a validation split is given.
      valid: share of the others; None: `FRACTION`.
      usual: share for test that is cut unasked.
    """

    test: float | None = None
    valid: float | None = None
    usual: float = FRACTION

    @property
    def asked(self) -> bool:
        """True where the user gave one."""
        return self.test is not None or self.valid is not None


USUAL = Fractions()


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; all have the same classes. ``test`` is None where nothing is set aside for it."""

    train: Source
    valid: Source
    test: Source | None

    @property
    def given(self) -> dict[str, Source]:
        """Splits that there are, by name."""
        return {part: source for part, source in vars(self).items() if source is not None}

    @property
    def last(self) -> tuple[str, Source]:
        """Name and examples of the split that is evaluated when training has ended: test or, without it, valid."""
        return ("valid", self.valid) if self.test is None else ("test", self.test)


def shares(given: Container[str], fractions: Fractions) -> dict[str, float]:
    """Shares to cut off train for the splits that are not ``given``: for test of all, then for valid of the others.

    Raises:
      UserError: nothing is left to validate on.
    """
    unasked = 0.0 if "valid" in given else fractions.usual
    test = unasked if fractions.test is None else fractions.test
    valid = FRACTION if fractions.valid is None else fractions.valid
    if "valid" not in given and not valid:
        raise UserError("there is no validation split, and 0 is its fraction: give a --valid-fraction above 0")
    return {part: share for part, share in (("test", test), ("valid", valid)) if part not in given and share}


def say(name: object, origins: Mapping[str, str]) -> None:
    """Prints where each split comes from."""
    parts = [f"{part} = {origins[part]}" for part in split_folders.NAMES if part in origins]
    none = "" if "test" in origins else "; no test: valid is evaluated at the end"
    print(text.one_line(f"{name}: {'; '.join(parts)}{none}"))


def complete(
    name: object,
    whole: Source,
    labels: np.ndarray | None,
    given: Mapping[str, Source],
    origins: Mapping[str, str],
    fractions: Fractions,
) -> Splits:
    """Splits ``given`` and, cut off ``whole``, the others: the same each time, stratified by ``labels``.

    Args:
      origins: split → where it comes from, to be printed; without train, ``whole`` is no split by itself.
    """
    train, parts, said = np.arange(len(whole)), dict(given), {"train": "the rest", **origins}
    for part, share in shares(given, fractions).items():
        train, taken = cut(labels, train, part, share, whole.classes)
        parts[part] = Subset(whole, taken)
        left = part == "valid" and "test" in parts and "test" not in given
        others = "the others" if left else origins.get("train", "all")
        said[part] = f"{100 * share:g} % of {others}{'' if labels is None else ', by class'}"
    say(name, said)
    return Splits(Subset(whole, train), parts["valid"], parts.get("test"))


def cut(
    labels: np.ndarray | None, indices: np.ndarray, part: str, fraction: float, classes: Sequence[str]
) -> list[np.ndarray]:
    """Indices that are kept, and those that are cut off for a split."""
    from sklearn.model_selection import train_test_split  # costs most of a second

    strata = None if labels is None else labels[indices]
    try:
        return train_test_split(indices, test_size=fraction, stratify=strata, random_state=0)
    except ValueError as error:
        few = f"too few images to cut a {part} split off the {len(indices)}"
        if strata is not None:
            counts = np.bincount(strata, minlength=len(classes))
            fewest = int(counts.argmin())
            few += f" in {len(counts)} classes, the fewest being {counts[fewest]} of {classes[fewest]!r}"
        raise UserError(f"{few}: add images, or make train, valid and test by hand") from error
