"""Splits without the images that cannot be used; see `checking`, which examines their files."""

from collections.abc import Mapping
from pathlib import Path

from cnnjax import text
from cnnjax.data import sources
from cnnjax.data.sources import Source
from cnnjax.types import UserError

MOST_NAMED = 20  # images that are skipped


def usable(source: Source, cache: Path | None) -> tuple[Source, list[str]]:
    """Examples of image files that can be used, and why the others cannot; a source of other kind is not read here.

    Args:
      cache: as for `checking.verdicts`.

    Raises:
      UserError: none can be used.
    """
    return sources.readable(source, cache) if sources.of_files(source) else (source, [])


def screened(parts: Mapping[str, Source], cache: Path | None, *, skip: bool) -> dict[str, Source]:
    """Splits, by name (train is one), without the images that cannot be used, which are named and counted.

    Args:
      cache: as for `checking.verdicts`.
      skip: leave such images out, and look for them in sources that are not of files, too.

    Raises:
      UserError: there are such images and ``skip`` is False, or no image of a split, or of a class in train, is left.
    """
    found = {part: (sources.readable if skip else usable)(source, cache) for part, source in parts.items()}
    errors = [error for _, bad in found.values() for error in bad]
    if errors and not skip:
        raise UserError(
            f"{'; '.join(errors[:3])}{'; …' if len(errors) > 3 else ''}: {len(errors)} of "
            f"{sum(map(len, parts.values()))} images cannot be used: repair or remove them, or give --skip-corrupt"
        )
    absent = sources.absent_classes(parts["train"])  # of a few examples to try a script with
    for error in errors[:MOST_NAMED]:
        print(f"skipped: {text.one_line(error)}")
    if len(errors) > MOST_NAMED:
        print(f"skipped: … {len(errors) - MOST_NAMED} more, which inspect_data.py lists")
    for part, (source, bad) in found.items():
        if skip:
            print(f"{part}: {len(source)} images, {len(bad)} corrupt ones skipped")
    if lost := [name for name in sources.absent_classes(found["train"][0]) if name not in absent]:
        raise UserError(f"no usable training image is left of {', '.join(lost)}: add images, or leave it out")
    return {part: source for part, (source, _) in found.items()}
