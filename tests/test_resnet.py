"""ResNet, SE-ResNet and pre-activation ResNet: counts, shapes, identity at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import promises
import pytest
from peers import FAST

from cnnjax import models, nn
from cnnjax.models import resnet


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("seresnet50", 28_088_024),
        ("seresnet101", 49_326_872),
        ("seresnet152", 66_821_848),
    ],
)
def test_parameters(name, parameters):
    assert promises.counts(name)[0] == parameters


@pytest.mark.parametrize(
    ("name", "total", "fixed"),
    [
        ("resnet50_v1", 25_636_712, 53_120),
        ("resnet101_v1", 44_707_176, 105_344),
        ("resnet152_v1", 60_419_944, 151_424),
    ],
)
def test_keras_counts_a_bias_for_each_normalized_feature(name, total, fixed):
    parameters, statistics = promises.counts(name)
    assert statistics == fixed
    biases = statistics // 2  # one per feature before a BatchNorm; Keras' convolutions have them, ours do not
    assert parameters + statistics + biases == total


def test_preactivation_parameters():
    assert promises.counts("resnet50_v2") == (25_613_800 - 45_440, 45_440)


def test_stages_halve_the_feature_map():
    model = models.create("resnet50")
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    _, endpoints = jax.eval_shape(model.apply, promises.abstract(model, x.shape), x)
    assert {name: x.shape[1:] for name, x in endpoints.items()} == {
        "stem": (112, 112, 64),
        "stage1": (56, 56, 256),
        "stage2": (28, 28, 512),
        "stage3": (14, 14, 1024),
        "stage4": (7, 7, 2048),
        "pooled": (2048,),
    }
    model = models.create("resnet50_v2")
    _, v2 = jax.eval_shape(model.apply, promises.abstract(model, x.shape), x)
    assert {name: x.shape for name, x in v2.items()} == {name: x.shape for name, x in endpoints.items()}


@pytest.mark.parametrize("first", [True, False])
def test_where_the_stride_is(first):
    """The first 1×1 convolution with stride 2 reads every fourth pixel, the 3×3 reads all."""
    conv_norm = functools.partial(nn.ConvNorm, dtype=None)
    rest = {"zero_init": False, "reduction": None, "conv_norm": conv_norm}
    unit = resnet.Unit(8, strides=2, bottleneck=True, stride_first=first, **rest)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    variables = unit.init(promises.KEYS, x, False)
    read = jax.grad(lambda x: jnp.square(unit.apply(variables, x, False)).sum())(x).any((0, 3))
    assert read[::2, ::2].all()
    assert read.all() != first
    assert read[1::2].any() != first


def test_zero_init_starts_units_as_the_identity():
    model = resnet.ResNet((2, 1, 1, 1), bottleneck=False, zero_init=True, num_classes=10)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    variables = jax.jit(model.init, compiler_options=FAST)(promises.KEYS, x)
    assert not variables["params"]["stage1"]["block1"]["conv2"]["norm"]["scale"].any()
    _, endpoints = jax.jit(model.apply, compiler_options=FAST)(variables, x)
    # Stage 1 has no shortcut convolution: its input, pooled and not negative, is its output.
    np.testing.assert_array_equal(endpoints["stage1"], nn.max_pool(endpoints["stem"], 3, strides=2, padding=1))


@pytest.mark.exhaustive
def test_remat_changes_nothing(monkeypatch):
    """The network has as few blocks as contain every part."""
    few = functools.partial(resnet.ResNet, (2, 1, 1, 1), bottleneck=False)
    monkeypatch.setitem(models._variants("classification"), "resnet18", few)
    promises.check_remat("resnet18", 32)


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2", "seresnet50"])
def test_any_size_and_channels(name):
    promises.check_sizes(name, 1)
