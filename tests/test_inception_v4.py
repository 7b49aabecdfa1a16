"""Inception-v4 and Inception-ResNet-v2: counts, sizes of feature maps, recomputation."""

import functools

import jax
import numpy as np
import promises
import pytest

from cnnjax import models, nn
from cnnjax.models import inception_v4

BRANCHES = (((4, 1),), ((2, 1), (3, (1, 3))))


def sizes(name, size):
    """Pixels and features of the endpoints."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    model = models.create(name)
    _, endpoints = jax.eval_shape(model.apply, promises.abstract(model, images.shape), images)
    return {key: x.shape[2:] for key, x in endpoints.items() if key != "pooled"}


@pytest.mark.exhaustive
def test_counts():
    assert promises.counts("inception_v4") == (42_679_816, 63_168)
    assert promises.counts("inception_v4", num_classes=None)[0] == 42_679_816 - 1537 * 1000
    params, statistics = promises.counts("inception_resnet_v2")
    assert (params + statistics, statistics) == (55_873_736, 60_544)


def test_sizes_of_the_feature_maps_of_inception_v4():
    """Fig. 9 of the paper, and Fig. 3 for the stem."""
    assert sizes("inception_v4", 299) == {
        "stem1": (147, 64),
        "stem2": (73, 160),
        "stem3": (71, 192),
        "stem4": (35, 384),
        "inception_a": (35, 384),
        "reduction_a": (17, 1024),
        "inception_b": (17, 1024),
        "reduction_b": (8, 1536),
        "inception_c": (8, 1536),
    }


@pytest.mark.exhaustive
def test_sizes_of_the_feature_maps_of_inception_resnet_v2():
    assert sizes("inception_resnet_v2", 299) == {
        "stem1": (147, 64),
        "stem2": (71, 192),
        "stem3": (35, 192),
        "mixed": (35, 320),
        "block35": (35, 320),
        "reduction_a": (17, 1088),
        "block17": (17, 1088),
        "reduction_b": (8, 2080),
        "block8": (8, 2080),
        "block8_last": (8, 2080),
        "conv": (8, 1536),
    }


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
@pytest.mark.exhaustive
def test_sizes(name):
    promises.check_sizes(name, 75)


@pytest.mark.exhaustive
def test_remat(monkeypatch):
    stages = (  # as few as contain both kinds of block
        ("stem1", 1, inception_v4.Mixed, ((((8, 3, 2), (8, 3, 2)), (("max", 7, 4),)),)),
        ("inception_a", 2, inception_v4.Residual, (BRANCHES, 0.2, True)),
    )
    monkeypatch.setattr(inception_v4, "_V4", stages)
    promises.check_remat("inception_v4", 75)


def test_residual_blocks_add_a_scaled_branch():
    """The block without ReLU, with scale 1, less the shortcut is the branch; the others add a part of it, then ReLU."""
    conv_norm = functools.partial(nn.ConvNorm, dtype=None)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 6)).astype(np.float32)
    linear, scaled = (
        inception_v4.Residual(BRANCHES, scale, activate, conv_norm) for scale, activate in ((1.0, False), (0.2, True))
    )
    variables = linear.init(jax.random.key(0), x, False)
    branch = linear.apply(variables, x, False) - x
    assert float(abs(branch).max()) > 0.1
    np.testing.assert_allclose(scaled.apply(variables, x, False), np.maximum(x + 0.2 * branch, 0), atol=1e-6)
