"""Fingerprints by which the same content is recognized, wherever it lies: SHA-256 of arrays, and of data sets."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from cnnjax.data.sources import DECODE_THREADS, Arrays, Source

SAMPLED = 64  # examples that are read of a source that is not in memory


def of_arrays(trees: Sequence[Any], facts: str = "") -> str:
    """Hexadecimal fingerprint of all arrays in ``trees``, bit for bit, and of ``facts``."""
    total = hashlib.sha256(facts.encode())
    for leaf in jax.tree.leaves(list(trees)):
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def of_source(source: Source) -> str:
    """Hexadecimal fingerprint of a source as training reads it: its number of examples, its classes, its examples.

    Where they are not in memory, ``SAMPLED`` of them stand for all, evenly spaced: ImageNet would take an hour.
    """
    facts = repr((len(source), tuple(source.classes)))
    if isinstance(source, Arrays):
        return of_arrays([dict(source.fields)], facts)
    places = np.unique(np.linspace(0, len(source) - 1, SAMPLED, dtype=int)) if len(source) else ()
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        examples = list(pool.map(lambda place: dict(source[int(place)]), places))
    return of_arrays(examples, facts)


def combined(parts: Iterable[str]) -> str:
    """Fingerprint of several things in their order, from theirs."""
    return of_arrays((), " ".join(parts))
