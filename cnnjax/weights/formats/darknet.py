"""Darknet's files: ``.cfg``, the text that describes a network, and ``.weights``, its numbers without names.

A ``.weights`` file is a header (version, number of images seen) and then float32 values, layer by layer: of a
convolution with BatchNorm bias, scale, running mean and variance, then the kernel ``[out, in / groups, h, w]``; of one
without it bias and kernel. `weights.in_order` gives them their places.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax.ops import wordtree
from cnnjax.types import UserError
from cnnjax.weights.formats.content import Content, Format, Signature, Tensor, mapped

FLOATS = "floats"  # key of the one array
_VERSIONS = range(0, 1000)  # of any part of the version; Darknet itself takes more as the mark of a transposed file
_WIDE_SINCE = 2  # minor version from which the number of images seen has 8 bytes


class Section(NamedTuple):
    """Section of a ``.cfg`` file: its name, its first line, and its settings by name with theirs."""

    file: Path
    name: str
    line: int
    values: dict[str, tuple[str, int]]

    def error(self, what: str, key: str | None = None) -> UserError:
        """Error about this section, or about its setting ``key``."""
        line = self.values[key][1] if key in self.values else self.line
        return UserError(f"{self.file}, line {line}: [{self.name}]: {what}")

    def number(self, key: str, default: int, least: int = 0) -> int:
        """Whole number of at least ``least``; UserError for another value."""
        text = self.values[key][0] if key in self.values else str(default)
        try:
            if int(text) >= least:
                return int(text)
        except ValueError:
            pass
        raise self.error(f"{key}={text}: a whole number from {least} is expected", key)

    def numbers(self, key: str) -> tuple[int, ...]:
        """Whole numbers, separated by commas; UserError where the setting is missing or has another value."""
        found = self.floats(key)
        if any(x != int(x) for x in found):
            raise self.error(f"{key}={self.values[key][0]}: whole numbers are expected", key)
        return tuple(int(x) for x in found)

    def floats(self, key: str, default: str | None = None) -> tuple[float, ...]:
        """Numbers, separated by commas; UserError where the setting is missing or has another value."""
        if key not in self.values and default is None:
            raise self.error(f"its setting {key} is missing")
        text = self.values[key][0] if key in self.values else str(default)
        try:
            found = tuple(float(part) for part in text.split(",") if part.strip())
        except ValueError:
            found = ()
        if not found or not np.isfinite(found).all():
            raise self.error(f"{key}={text}: numbers separated by commas are expected", key)
        return found

    def tree(self, key: str) -> tuple[int, ...]:
        """Parents of the nodes of a tree, -1 for a root: the last word of each line of the file that ``key`` names.

        Darknet's programs look for it from where they are started, usually above the folder of the cfg.

        Raises:
          UserError: there is no such file, or it is no tree.
        """
        name = self.values[key][0]
        places = [folder / name for folder in (Path(), self.file.parent, self.file.absolute().parent.parent)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise self.error(f"{key}={name}: no such file here, beside the cfg or in the folder above it", key)
        try:
            parents = tuple(int(line.split()[-1]) for line in path.read_text().splitlines() if line.strip())
            wordtree.check(parents)
        except (ValueError, OSError) as error:
            raise self.error(
                f"{path} is no tree, lines of a name and the number of its parent: {error}", key
            ) from error
        return parents

    def text(self, key: str, default: str) -> str:
        """Value as it stands."""
        return self.values[key][0] if key in self.values else default


def sections(path: Path) -> list[Section]:
    """Sections of a ``.cfg`` file in their order; ``#`` and ``;`` begin comments.

    Raises:
      UserError: the file cannot be read, is no text of this form, or has no section.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give Darknet's .cfg file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: give Darknet's .cfg file, and its .weights after it") from error
    found: list[Section] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.split("#")[0].split(";")[0].strip()
        key, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("[") and line.endswith("]"):
            found.append(Section(path, line[1:-1].strip().lower(), number, {}))
        elif line and not (found and equals and key):
            raise UserError(f"{path}, line {number}: {raw.strip()[:80]!r} is neither [section] nor name=value")
        elif line:
            found[-1].values[key] = value, number
    if not found:
        raise UserError(f"{path} has no [section]: give Darknet's .cfg file")
    return found


def recognizes(signature: Signature) -> bool:
    """True for a file whose name ends in .weights, or in .conv and a number, and that begins with a version."""
    suffixes = signature.path.suffixes
    named = suffixes[-1:] == [".weights"] or (suffixes[-2:-1] == [".conv"] and suffixes[-1][1:].isdigit())
    if not named or len(signature.head) < 12:
        return False
    return all(part in _VERSIONS for part in np.frombuffer(signature.head[:12], "<i4"))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens the numbers after the header as one array.

    Raises:
      UserError: the file ends within the header or within a number.
    """
    data = mapped(path)
    major, minor = np.frombuffer(data[:8], "<i4")
    begin = 20 if 10 * major + minor >= _WIDE_SINCE else 16
    if len(data) < begin or (len(data) - begin) % 4:
        raise UserError(f"{path} is cut short: it ends within a number after {len(data):,} bytes; fetch it again")
    floats = data[begin:].view("<f4")
    yield Content("darknet", "Darknet file", {FLOATS: Tensor(floats.shape, floats.dtype, lambda: floats)})


FORMAT = Format("Darknet .weights", recognizes, opened)
