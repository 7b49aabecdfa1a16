"""SENet-154: count, sizes, recomputation."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models
from cnnjax.models import senet


def test_count():
    assert promises.counts("senet154")[0] == 115_088_984
    assert promises.counts("senet154", num_classes=None)[0] == 115_088_984 - 2_049_000


def test_has_154_layers():
    """The stem has three, each of 50 bottlenecks three, and the head is one."""
    params = promises.abstract(models.create("senet154"), (1, 32, 32, 3))["params"]
    convs = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "'conv'" in jax.tree_util.keystr(path)]
    shortcuts = [path for path in convs if "shortcut" in jax.tree_util.keystr(path)]
    assert len(shortcuts) == 4
    assert len(convs) - len(shortcuts) + 1 == 154


@pytest.mark.exhaustive
def test_remat(monkeypatch):
    monkeypatch.setattr(senet, "_STAGES", ((2, 32), (1, 32)))  # as few as contain every part
    promises.check_remat("senet154", 32)


@pytest.mark.exhaustive
def test_sizes():
    promises.check_sizes("senet154", 3)


def test_pooling_rounds_up():
    model = models.create("senet154")
    images = jax.ShapeDtypeStruct((1, 224, 226, 3), np.float32)
    _, endpoints = jax.eval_shape(model.apply, promises.abstract(model, images.shape), images)
    assert {key: x.shape[1:3] for key, x in endpoints.items() if x.ndim == 4} == {
        "stem": (112, 113),
        "stage1": (56, 56),
        "stage2": (28, 28),
        "stage3": (14, 14),
        "stage4": (7, 7),
    }
    assert endpoints["pooled"].shape == (1, 2048)
