"""MobileNet and MobileNetV2: counts, widths, sizes, recomputation."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models
from cnnjax.models import mobilenet


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "statistics"),
    [
        ("mobilenet_v1", {}, 4_231_976, 21_888),
        ("mobilenet_v1", {"width": 0.75}, 2_601_976 - 16_416, 16_416),
        ("mobilenet_v1", {"num_classes": None}, 4_231_976 - 1_025_000, 21_888),
        ("mobilenet_v2", {}, 3_504_872, 34_112),
        ("mobilenet_v2", {"num_classes": None}, 3_504_872 - 1_281_000, 34_112),
    ],
)
def test_counts(name, fields, parameters, statistics):
    assert promises.counts(name, **fields) == (parameters, statistics)


@pytest.mark.exhaustive
def test_remat(monkeypatch):
    """The network has as few blocks as contain every part."""
    monkeypatch.setattr(mobilenet, "_BLOCKS", ((16, 1), (32, 2)))
    promises.check_remat("mobilenet_v1", 32)
    monkeypatch.setattr(mobilenet, "_STAGES", ((1, 8, 1, 1), (6, 16, 2, 2)))
    promises.check_remat("mobilenet_v2", 32)


@pytest.mark.exhaustive
def test_sizes():
    promises.check_sizes("mobilenet_v1", 31)
    promises.check_sizes("mobilenet_v1", 1, padding=1)
    promises.check_sizes("mobilenet_v2", 1)
    promises.check_sizes("mobilenet_v2", 1, padding=1)


def sizes(name, size=224, **fields):
    """Shapes of the endpoints without the batch."""
    model = models.create(name, **fields)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    _, endpoints = jax.eval_shape(model.apply, promises.abstract(model, images.shape), images)
    return {key: x.shape[1:] for key, x in endpoints.items()}


def test_feature_maps_are_the_papers():
    assert sizes("mobilenet_v1") == {
        "block1": (112, 112, 64),
        "block3": (56, 56, 128),
        "block5": (28, 28, 256),
        "block11": (14, 14, 512),
        "block13": (7, 7, 1024),
        "pooled": (1024,),
    }
    assert sizes("mobilenet_v2") == {
        "block1": (112, 112, 16),
        "block3": (56, 56, 24),
        "block6": (28, 28, 32),
        "block13": (14, 14, 96),
        "last": (7, 7, 1280),
        "pooled": (1280,),
    }


def test_odd_sizes_round_down_in_the_v1_of_keras_only():
    assert sizes("mobilenet_v1", 225)["block13"] == (7, 7, 1024)
    assert sizes("mobilenet_v1", 225, padding=1)["block13"] == (8, 8, 1024)
    assert sizes("mobilenet_v2", 225)["last"] == (8, 8, 1280)


@pytest.mark.exhaustive
def test_v2_rounds_widths_to_eights():
    narrow = sizes("mobilenet_v2", width=0.35)  # 5.6, 8.4, 11.2, 33.6
    assert [narrow[f"block{i}"][-1] for i in (1, 3, 6, 13)] == [8, 8, 16, 32]  # 8 is less than a tenth below 8.4
    assert narrow["last"][-1] == 1280
    wide = sizes("mobilenet_v2", width=1.4)  # 22.4, 33.6, 44.8, 134.4, 1792
    assert [wide[f"block{i}"][-1] for i in (1, 3, 6, 13)] == [24, 32, 48, 136]
    assert wide["last"][-1] == 1792
    assert sizes("mobilenet_v2", width=0.75)["block3"][-1] == 24  # 18: 16 is more than a tenth below
