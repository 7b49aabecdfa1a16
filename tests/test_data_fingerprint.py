"""Fingerprints of arrays and of data sets."""

import numpy as np
import pytest

from cnnjax.data import fingerprint, sources

CLASSES = ("a", "b")


def arrays(**changes):
    fields = {"image": np.arange(400, dtype=np.uint8).reshape(100, 2, 2, 1), "label": np.arange(100) % 2}
    return sources.Arrays({**fields, **changes}, CLASSES)


def test_arrays_are_told_apart_by_bits_shapes_and_facts():
    x = np.arange(6, dtype=np.float32)
    prints = [
        fingerprint.of_arrays(([x], {"a": x}), "f"),
        fingerprint.of_arrays(([x], {"a": np.nextafter(x, 9)}), "f"),
        fingerprint.of_arrays(([x.reshape(2, 3)], {"a": x}), "f"),
        fingerprint.of_arrays(([x], {"a": x}), "g"),
    ]
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint.of_arrays(([x.copy()], {"a": x.copy()}), "f")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: sources.Subset(x, np.arange(100))], ids=["memory", "read"])
def test_a_source_has_the_fingerprint_of_its_content(wrap):
    known = fingerprint.of_source(wrap(arrays()))
    assert known == fingerprint.of_source(wrap(arrays()))
    images = arrays().fields["image"].copy()
    images[99, 1, 1, 0] += 1
    others = [
        arrays(image=images),
        arrays(label=1 - np.arange(100) % 2),
        sources.Arrays(arrays().fields, ("a", "c")),
        sources.Subset(arrays(), np.arange(99)),
    ]
    assert known not in [fingerprint.of_source(wrap(other)) for other in others[:3]]
    assert known != fingerprint.of_source(others[3])


def test_several_fingerprints_count_in_their_order():
    assert len({fingerprint.combined(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], [])}) == 4
