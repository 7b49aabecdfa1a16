"""Pictures that are there twice: files of equal bytes, and pictures that look alike, by a perceptual hash.

The hash is the difference hash (Krawetz 2013, "Kind of Like That") in both directions: 128 bits, each True where a cell
of a grid is brighter than its neighbor. Pictures are alike whose hashes differ in at most `BITS` bits and whose grids
differ by at most `LEVELS` gray levels in the mean: a copy that was saved again or resized, no crop and no mirror image.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

BITS = 10  # of 128: of photos halved and saved as JPEG of quality 50, 99 % differ in no more
LEVELS = 3.0  # of 255; tells small drawings on a plain ground apart, whose hashes are near
BLOCK = 2**22  # pairs that are compared at a time


class Print(NamedTuple):
    """Fingerprint of a picture."""

    digest: bytes  # SHA-256 of its file
    hash: np.ndarray  # uint64 [2]
    grid: np.ndarray  # uint8 [9, 9], gray


class Pair(NamedTuple):
    """Picture that is in two splits."""

    split: str
    place: int  # in its split
    other_split: str
    other_place: int
    same_file: bool  # else it only looks alike


def fingerprint(content: bytes, image: np.ndarray) -> Print:
    """Fingerprint of a file's bytes and of its pixels, uint8 [h, w, 1 | 3]."""
    gray = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).convert("L")
    grid = np.asarray(gray.resize((9, 9), Image.Resampling.BOX))
    bits = np.stack([grid[:8, :8] > grid[:8, 1:], grid[:8, :8] > grid[1:, :8]])
    return Print(hashlib.sha256(content).digest(), np.packbits(bits).view(np.uint64), grid)


def between(splits: Mapping[str, Sequence[Print]]) -> list[Pair]:
    """Pictures of each split that are in a split before it, each with the one nearest to it.

    Every pair of splits is compared, 25 million pairs of pictures in a second or two. Pictures of few pixels, such as
    MNIST's, look alike without being copies.
    """
    found, names = [], list(splits)
    for place, name in enumerate(names):
        for earlier in names[:place]:
            digests = {each.digest: i for i, each in reversed(list(enumerate(splits[earlier])))}
            near = _alike(splits[name], splits[earlier])
            for i, each in enumerate(splits[name]):
                other = digests.get(each.digest, near.get(i))
                if other is not None:
                    found.append(Pair(name, i, earlier, other, each.digest in digests))
    return found


def _alike(prints: Sequence[Print], others: Sequence[Print]) -> dict[int, int]:
    """Place of each of ``prints`` that looks like one of ``others`` → the nearest of them."""
    if not prints or not others:
        return {}
    ours, theirs = (np.stack([each.hash for each in chosen]) for chosen in (prints, others))
    found: dict[int, tuple[float, int]] = {}
    step = max(BLOCK // len(theirs), 1)
    for start in range(0, len(ours), step):
        differing = sum(np.bitwise_count(ours[start : start + step, None, k] ^ theirs[None, :, k]) for k in range(2))
        for i, j in zip(*np.nonzero(differing <= BITS), strict=True):
            grids = prints[start + i].grid.astype(int), others[j].grid.astype(int)
            levels = float(np.abs(grids[0] - grids[1]).mean())
            if levels <= LEVELS and levels < found.get(start + int(i), (np.inf, 0))[0]:
                found[start + int(i)] = levels, int(j)
    return {i: j for i, (_, j) in found.items()}
