"""Sources: random access to examples, ``source[i] → {"image": uint8 [h, w, c], "label": int32, …}``."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cnnjax.data import checking
from cnnjax.data.formats.folders import Folder
from cnnjax.data.formats.images import MODES, CorruptImageError
from cnnjax.data.formats.tfds import Tfds
from cnnjax.types import Example, UserError

DECODE_THREADS = checking.THREADS


class Source(Protocol):
    """Examples by index."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class OfFiles(Protocol):
    """Source of image files, which can be checked before they are used."""

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which the images at ``indices`` cannot be used, each with its file, empty for the others.

        ``cache`` keeps what is found out, see `checking.verdicts`.
        """
        ...


@dataclass(frozen=True)
class Arrays:
    """Examples in memory; ``image`` is uint8 [n, h, w, 1 | 3], ``label`` integer [n], 0 … len(classes) − 1.

    Raises:
      UserError: fields of different lengths, wrong rank, dtype or channel count, or a label out of range.
    """

    fields: Mapping[str, np.ndarray]  # name → [n, …]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        image, label = self.fields.get("image"), self.fields.get("label")
        if image is not None and (image.ndim != 4 or image.shape[-1] not in MODES or image.dtype != np.uint8):
            raise UserError(f"images must be uint8 [n, h, w, 1 or 3], got {image.dtype} {image.shape}")
        if label is not None and (label.shape != (len(self),) or not np.issubdtype(label.dtype, np.integer)):
            raise UserError(f"labels must be integers [{len(self)}], one per example, got {label.dtype} {label.shape}")
        lengths = {name: len(values) for name, values in self.fields.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"fields must have the same length, one row per example, got {lengths}")
        if label is not None and len(wrong := np.flatnonzero((label < 0) | (label >= len(self.classes)))):
            raise UserError(
                f"labels must lie in 0 … {len(self.classes) - 1} ({len(self.classes)} classes): "
                f"example {wrong[0]} has label {label[wrong[0]]} ({len(wrong)} such examples)"
            )

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: Any) -> dict[str, Any]:
        found = {name: values[index] for name, values in self.fields.items()}
        return {**found, "label": found["label"].astype(np.int32, copy=False)} if "label" in found else found


@dataclass(frozen=True)
class _Wrapper:
    """Source made from another one, by default with its length and classes."""

    source: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of ``source``."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Subset(_Wrapper):
    """The examples of ``source`` at ``indices``, an array of integers."""

    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


@dataclass(frozen=True)
class Mapped(_Wrapper):
    """The examples of ``source``, each through ``transform``, which is deterministic and leaves ``label`` alone."""

    transform: Callable[[Example], Example]

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.source[index])


@dataclass(frozen=True)
class Kept(_Wrapper):
    """The examples of ``source``, each read when it is first asked for and then kept: images may differ in size."""

    read: dict[int, Example] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, index: int) -> Example:
        if index not in self.read:
            self.read[index] = self.source[index]
        return self.read[index]


@dataclass(frozen=True)
class Lenient(_Wrapper):
    """The examples of ``source`` with the field ``readable``; ``blank`` where an image cannot be read."""

    blank: Example

    def __getitem__(self, index: int) -> Example:
        try:
            return {**self.source[index], "readable": True}
        except CorruptImageError:
            return {**self.blank, "readable": False}

    def errors(self, readable: np.ndarray) -> list[str]:
        """Messages of the examples that cannot be read; ``readable`` is that field of all examples, bool [n].

        Raises:
          UserError: no example can be read.
        """
        found = [error for index in np.flatnonzero(~readable) if (error := _read(self.source, int(index))[1])]
        if len(readable):
            _check_any(len(readable), found)
        return found


@dataclass(frozen=True)
class Relabelled:
    """Source whose labels are ``places[label]``, the places in ``classes`` of the labels of ``source``."""

    source: Source
    places: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        return {**example, "label": np.int32(self.places[example["label"]])}


def labels(source: Source) -> np.ndarray:
    """Class of every example, int32 [n]; from tfds data sets each example is read."""
    if isinstance(source, Arrays):
        return source.fields["label"].astype(np.int32)
    if isinstance(source, Folder):
        return source.labels
    if isinstance(source, Subset):
        return labels(source.source)[source.indices]
    if isinstance(source, Mapped):
        return labels(source.source)
    return np.array([source[i]["label"] for i in range(len(source))], np.int32)


def known_labels(source: Source) -> np.ndarray | None:
    """Class of every example, int32 [n], where no image must be read for it and each has one; else None."""
    if isinstance(source, Subset):
        whole = known_labels(source.source)
        return None if whole is None else whole[source.indices]
    if isinstance(source, Mapped | Lenient):
        return known_labels(source.source)
    if isinstance(source, Arrays) and "label" not in source.fields:
        several = source.fields.get("labels")
        if several is None or several.shape[1:] != (1,) or not source.fields["box_mask"].all():
            return None
        return several[:, 0]
    return labels(source) if isinstance(source, Arrays | Folder) else None


def _read(source: Source, index: int) -> tuple[Example | None, str]:
    try:
        return source[index], ""
    except CorruptImageError as error:
        return None, str(error)


def _check_any(examples: int, errors: Sequence[str]) -> None:
    if len(errors) == examples:
        raise UserError(f"none of the {examples} images can be read{f', such as {errors[0]}' if errors else ''}")


def innermost(source: Source) -> tuple[Source, np.ndarray]:
    """Source without what wraps it, and the places of the examples in it."""
    if isinstance(source, Subset):
        base, places = innermost(source.source)
        return base, places[source.indices]
    if isinstance(source, _Wrapper | Relabelled):
        return innermost(source.source)
    return source, np.arange(len(source))


def of_files(source: Source) -> bool:
    """True if ``readable`` can keep what it finds out."""
    return isinstance(innermost(source)[0], OfFiles)


def readable(source: Source, cache: Path | None = None) -> tuple[Source, list[str]]:
    """Examples that can be used, in their order, and why the others cannot; each image is decoded.

    Args:
      cache: folder in which verdicts on files are kept, see `checking.verdicts`.

    Raises:
      UserError: no example can be used.
    """
    base, places = innermost(source)
    if isinstance(base, OfFiles):
        errors = base.problems(places, cache)
    else:
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            errors = list(pool.map(lambda index: _read(source, index)[1], range(len(source))))
    found = list(filter(None, errors))
    _check_any(len(source), found)
    return (Subset(source, np.flatnonzero([not error for error in errors])) if found else source), found


def absent_classes(source: Source) -> list[str]:
    """Classes without an example in class folders, whatever wraps them; none for other sources."""
    base, places = innermost(source)
    present = set(base.labels[places].tolist()) if isinstance(base, Folder) else set(range(len(base.classes)))
    return [name for label, name in enumerate(base.classes) if label not in present]


def stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Stacks each field of the examples into one array [n, …]; Python's integers become int32.

    Raises:
      UserError: the examples have different fields, or a field has different shapes.
    """
    fields = list(examples[0])
    if other := next((example for example in examples if example.keys() != examples[0].keys()), None):
        raise UserError(f"examples with different fields, such as {fields} and {list(other)}: give all the same")
    return {name: _stacked(name, [example[name] for example in examples]) for name in fields}


def _stacked(name: str, values: Sequence[Any]) -> np.ndarray:
    if len(shapes := {np.shape(value) for value in values}) > 1:
        fixed = name in ("image", "segmentation")
        cure = "give a size to bring them to" if fixed else "pad them, see targets.padding"
        raise UserError(f"field {name!r} has different shapes, such as {sorted(shapes)[:3]}: {cure}")
    return np.array(values, np.int32) if type(values[0]) is int else np.stack(values)


def in_memory(source: Source) -> Arrays:
    """Decodes the whole source into arrays, with threads; every field is stacked.

    Raises:
      CorruptImageError: counting the files that cannot be read and naming the first.
      UserError: there is no example, or a field has different shapes.
    """
    if not len(source):
        raise UserError("there are no images to read")
    source = _fetched(source)
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        results = list(pool.map(lambda index: _read(source, index), range(len(source))))
    errors = [error for _, error in results if error]
    if errors:
        raise CorruptImageError(f"{errors[0]}; {len(errors)} of {len(source)} images are corrupt")
    return Arrays(stack([example for example, _ in results if example is not None]), tuple(source.classes))


def _fetched(source: Source) -> Source:
    if isinstance(source, Mapped):
        return replace(source, source=_fetched(source.source))
    return source.fetched() if isinstance(source, Tfds) else source


def in_memory_if_small(source: Source, limit: int) -> Source:
    """``in_memory`` if all fields take at most ``limit`` bytes, else the source itself; errors as in `in_memory`."""
    if isinstance(source, Arrays) or not len(source):
        return source
    first, _ = _read(source, 0)  # one that is corrupt is counted with the others
    if first is None:
        return in_memory(source)
    size = sum(np.asarray(value).nbytes for value in first.values())
    return in_memory(source) if len(source) * size <= limit else source
