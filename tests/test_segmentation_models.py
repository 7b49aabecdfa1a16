"""Networks for segmentation: parameters as published, any size of image, any base, FCN's sums by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models.segmentation import fcn
from cnnjax.ops import resize
from cnnjax.types import UserError

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
PARAMETERS = {
    "fcn32s_vgg16": 136_152_917,
    "fcn16s_vgg16": 134_815_994,
    "fcn8s_vgg16": 134_489_759,
    "fcn_resnet50": 35_322_218,
    "deeplabv3_resnet50": 42_004_074,
}


def shapes(model, size, train=False):
    images = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=train), KEYS, images)
    found = functools.partial(model.apply, train=train, mutable=["batch_stats"] if train else False, rngs=KEYS)
    return variables, jax.eval_shape(found, variables, images)


DEEP = [pytest.mark.exhaustive]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=DEEP if "resnet" in name else []) for name in models.names("segmentation")]
)
def test_every_network_gives_logits_of_the_size_of_the_images(name):
    model = models.create(name, num_classes=5)
    for size in ((64, 96), (61, 77)):
        _, (logits, endpoints) = shapes(model, size)
        assert (logits.shape, logits.dtype) == ((2, *size, 5), np.float32)
        for aux in model.aux_weights:
            assert endpoints[aux].shape == logits.shape
    _, ((logits, _), _) = shapes(models.create(name, num_classes=5, dtype=jnp.bfloat16), (64, 64), train=True)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_published(name):
    variables, _ = shapes(models.create(name), (64, 64))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


def test_without_the_auxiliary_head():
    model = models.create("fcn_resnet50", aux=False)
    variables, (_, endpoints) = shapes(model, (64, 64))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])) == 32_957_013
    assert "aux" not in endpoints
    assert model.aux_weights == {}


def test_a_dilated_resnet_keeps_the_size_of_its_last_maps():
    for stride, sizes in ((32, [16, 8, 4, 2]), (16, [16, 8, 4, 4]), (8, [16, 8, 8, 8])):
        model = models.create("resnet50", num_classes=None, output_stride=stride)
        _, (_, endpoints) = shapes(model, (64, 64))
        assert [endpoints[f"stage{i}"].shape[1] for i in range(1, 5)] == sizes
        assert [model.strides[f"stage{i}"] for i in range(1, 5)] == [64 // size for size in sizes]
    with pytest.raises(ValueError, match="expected an output_stride of 8, 16 or 32, got 4"):
        shapes(models.create("resnet50", output_stride=4), (64, 64))


SMALL = ("mobilenet_v2", {"width": 0.35, "padding": 1})


@pytest.mark.parametrize("base", [SMALL, "resnet18", ("vgg16", {}), ("darknet19", {})])
def test_fcn_stands_on_any_base(base):
    model = models.create("fcn8s_vgg16", base=base, num_classes=4)
    _, (logits, endpoints) = shapes(model, (70, 93))
    assert logits.shape == (2, 70, 93, 4)
    assert {"score32", "score16", "score8"} <= endpoints.keys()


@pytest.mark.exhaustive
def test_fcn_adds_up_scores_that_start_as_interpolation():
    model = models.create("fcn8s_vgg16", base=SMALL, num_classes=4)
    images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    variables = model.init(KEYS, images)
    _, endpoints = model.apply(variables, images)
    assert not endpoints["score8"].any()  # scores start at zero
    rng = np.random.default_rng(1)
    for stride in (32, 16, 8):
        kernel = variables["params"][f"score{stride}"]["kernel"]
        variables["params"][f"score{stride}"]["kernel"] = rng.normal(size=kernel.shape).astype(np.float32)
    logits, endpoints = model.apply(variables, images)
    maps = dict(zip((8, 16, 32), (endpoints[name] for name in ("block6", "block13", "last")), strict=True))
    total = 0
    for stride, finer in ((32, 16), (16, 8), (8, 1)):
        own = maps[stride] @ variables["params"][f"score{stride}"]["kernel"][0, 0]
        total = total + own
        np.testing.assert_allclose(endpoints[f"score{stride}"], total, rtol=1e-4, atol=1e-4)
        total = resize.bilinear(total, [size * stride // finer for size in total.shape[1:3]])
    np.testing.assert_allclose(logits, total, rtol=1e-4, atol=1e-4)


def test_finer_skips_go_on_from_the_scores_of_coarser_ones():
    """FCN-16s from FCN-32s: the same scores, upsampled twice in place of 32 times, plus scores that are zero."""
    coarse, fine = (models.create("fcn8s_vgg16", base=SMALL, num_classes=4, skips=x) for x in ((32,), (32, 16)))
    images, rng = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32), np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32), jax.jit(coarse.init)(KEYS, images)
    )
    fresh = jax.jit(fine.init)(KEYS, images)
    found = fcn.refined(fresh, variables)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, fresh)
    score = jax.jit(coarse.apply)(variables, images)[1]["score32"]
    logits, endpoints = jax.jit(fine.apply)(found, images)
    np.testing.assert_allclose(endpoints["score32"], score, rtol=1e-5)
    twice = resize.bilinear(score, (4, 6))
    np.testing.assert_allclose(endpoints["score16"], twice, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, resize.bilinear(twice, (64, 96)), rtol=1e-4, atol=1e-4)


def test_a_base_without_such_a_map_is_an_error():
    with pytest.raises(UserError, match="has no feature map of stride 64"):
        shapes(models.create("fcn8s_vgg16", base=SMALL, skips=(64, 32)), (64, 64))
