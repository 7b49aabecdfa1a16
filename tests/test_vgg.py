"""VGG against the numbers of its paper."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models

KEY = jax.random.key(0)
COUNTS = {"vgg16": 138_357_544, "vgg19": 143_667_240}


def shapes(model, *shape):
    """Variables and (logits, endpoints) as shapes."""
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    return variables, jax.eval_shape(model.apply, variables, x)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_sizes(name):
    assert promises.counts(name) == (COUNTS[name], 0)
    _, (_, endpoints) = shapes(models.create(name), 224, 224, 3)
    sizes = {key: x.shape[1:] for key, x in endpoints.items()}
    assert [sizes[f"pool{i}"] for i in range(1, 6)] == [
        (112, 112, 64),
        (56, 56, 128),
        (28, 28, 256),
        (14, 14, 512),
        (7, 7, 512),
    ]
    assert sum(key.startswith("conv") for key in sizes) + 3 == int(name[3:])  # layers with weights
    assert (sizes["conv1_2"], sizes["conv5_3"]) == ((224, 224, 64), (14, 14, 512))
    assert (sizes["pooled"], sizes["fc1"], sizes["fc2"]) == ((512,), (4096,), (4096,))


def test_dense_layers_belong_to_the_head():
    """The first dense layer depends on the image size; without classes there is none."""
    variables, _ = shapes(models.create("vgg16"), 64, 97, 3)
    assert variables["params"]["fc1"]["kernel"].shape == (512 * 2 * 3, 4096)
    variables, _ = shapes(models.create("vgg16", num_classes=None), 64, 97, 3)
    assert sorted(variables["params"]) == [f"block{i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_that_it_admits(name):
    promises.check_sizes(name, 32)


@pytest.mark.exhaustive
def test_remat_changes_no_result():
    promises.check_remat("vgg16", 32)
