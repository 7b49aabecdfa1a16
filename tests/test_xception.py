"""Xception: counts, the chapter's 34 separable convolutions, recomputation, its two paddings."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models
from cnnjax.models import xception


def outputs(size, **fields):
    """Endpoints as shapes."""
    images = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    model = models.create("xception", **fields)
    return jax.eval_shape(model.apply, promises.abstract(model, images.shape), images)[1]


def test_counts():
    assert promises.counts("xception") == (22_855_952, 54_528)
    assert sum(promises.counts("xception")) == 22_910_480
    assert promises.counts("xception", num_classes=None)[0] == 22_855_952 - 2049 * 1000


def test_has_34_separable_convolutions():
    params = promises.abstract(models.create("xception"), (1, 32, 32, 3))["params"]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert sum("depthwise" in path for path in paths) == 34
    assert sum("stem" in path and "kernel" in path for path in paths) == 2


@pytest.mark.parametrize("padding", ["SAME", 1])
def test_sizes_of_the_feature_maps(padding):
    """Fig. 5 of the paper."""
    assert {key: x.shape[1:] for key, x in outputs((299, 299), padding=padding).items()} == {
        "stem": (147, 147, 64),
        "entry1_map": (147, 147, 128),
        "entry1": (74, 74, 128),
        "entry2_map": (74, 74, 256),
        "entry2": (37, 37, 256),
        "entry3_map": (37, 37, 728),
        "entry3": (19, 19, 728),
        "middle": (19, 19, 728),
        "exit1_map": (19, 19, 1024),
        "exit1": (10, 10, 1024),
        "exit2": (10, 10, 2048),
        "pooled": (2048,),
    }


@pytest.mark.parametrize("padding", ["SAME", 1])
def test_sizes(padding):
    promises.check_sizes("xception", 7, padding=padding)


@pytest.mark.exhaustive
def test_remat(monkeypatch):
    # As few blocks as contain every part.
    monkeypatch.setattr(xception, "_ENTRY", {"entry1": (8, 8)})
    monkeypatch.setattr(xception, "_MIDDLE", {"middle1": (8, 8)})
    monkeypatch.setattr(xception, "_EXIT1", (8, 16))
    monkeypatch.setattr(xception, "_EXIT2", (16, 32))
    promises.check_remat("xception", 35)
