"""ZFNet against the figures of its paper."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models

KEY = jax.random.key(0)


def shapes(model, *shape):
    """Variables and (logits, endpoints) as shapes."""
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    return variables, jax.eval_shape(model.apply, variables, x)


def test_parameters_and_sizes():
    assert promises.counts("zfnet") == (62_357_608, 0)
    _, (_, endpoints) = shapes(models.create("zfnet"), 224, 224, 3)
    assert {key: x.shape[1:] for key, x in endpoints.items()} == {
        "conv1": (110, 110, 96),
        "pool1": (55, 55, 96),
        "conv2": (26, 26, 256),
        "pool2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "pooled": (256,),
        "fc1": (4096,),
        "fc2": (4096,),
    }


def test_sizes_that_it_admits():
    promises.check_sizes("zfnet", 47)


def test_dense_layers_belong_to_the_head():
    """The first dense layer depends on the image size; without classes there is none."""
    variables, _ = shapes(models.create("zfnet"), 47, 80, 3)
    assert variables["params"]["fc1"]["kernel"].shape == (256 * 2, 4096)
    variables, _ = shapes(models.create("zfnet", num_classes=None), 47, 80, 3)
    assert sorted(variables["params"]) == [f"conv{i}" for i in range(1, 6)]


def test_pooled_before_normalized():
    model = models.create("zfnet", num_classes=None)
    x = np.random.default_rng(0).normal(scale=100, size=(2, 47, 52, 3)).astype(np.float32)
    _, endpoints = jax.jit(model.apply)(jax.jit(model.init)(KEY, x), x)
    for i in (1, 2, 5):
        conv, given = np.asarray(endpoints[f"conv{i}"]), endpoints[f"pool{i}"]
        want = np.empty(given.shape, np.float64)
        for row, column in np.ndindex(given.shape[1:3]):  # the last window may reach beyond the feature map
            want[:, row, column] = conv[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max((1, 2))
        assert conv.shape[1] - 2 * given.shape[1] in (-1, 0, 1)
        if i < 5:
            sums = [np.square(want[..., max(j - 2, 0) : j + 3]).sum(-1) for j in range(want.shape[-1])]
            want = want / (2 + 1e-4 * np.stack(sums, -1)) ** 0.75
        np.testing.assert_allclose(given, want, rtol=1e-4)


@pytest.mark.exhaustive
def test_remat_changes_no_result():
    promises.check_remat("zfnet", 47)
