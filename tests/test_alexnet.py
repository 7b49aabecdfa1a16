"""AlexNet, the chapter's and the paper's: sizes, counts, where normalization and dropout are, and the two towers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import promises
import pytest

from cnnjax import models, nn

KEY = jax.random.key(0)
COUNTS = {"alexnet": 62_378_344, "alexnet_two_tower": 60_965_224, "alexnet_torchvision": 61_100_840}
SMALLEST = {"alexnet": 67, "alexnet_two_tower": 67, "alexnet_torchvision": 63}
every_variant = pytest.mark.parametrize("name", COUNTS)


def shapes(model, *shape):
    """Variables and (logits, endpoints) as shapes."""
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    return variables, jax.eval_shape(model.apply, variables, x)


@functools.cache
def initialized(name):
    """A small model, its variables and images."""
    model = models.create(name, num_classes=5)
    x = np.random.default_rng(0).normal(scale=100, size=(2, 67, 67, 3)).astype(np.float32)
    return model, jax.jit(model.init)(KEY, x), x


@every_variant
def test_parameters_and_sizes(name):
    model = models.create(name)
    assert promises.counts(name) == (COUNTS[name], 0)
    _, (_, endpoints) = shapes(model, *model.image_shape)
    features = (64, 192, 384, 256, 256) if name == "alexnet_torchvision" else (96, 256, 384, 384, 256)
    assert {key: x.shape[1:] for key, x in endpoints.items()} == {
        "conv1": (55, 55, features[0]),
        "pool1": (27, 27, features[0]),
        "conv2": (27, 27, features[1]),
        "pool2": (13, 13, features[1]),
        "conv3": (13, 13, features[2]),
        "conv4": (13, 13, features[3]),
        "conv5": (13, 13, features[4]),
        "pool5": (6, 6, features[4]),
        "pooled": (256,),
        "fc1": (4096,),
        "fc2": (4096,),
    }


@every_variant
def test_sizes_that_it_admits(name):
    promises.check_sizes(name, SMALLEST[name])


@every_variant
def test_dense_layers_belong_to_the_head(name):
    """The first follows the size of the image, but torchvision's; without classes there is none."""
    variables, _ = shapes(models.create(name), 67, 99, 3)
    assert variables["params"]["fc1"]["kernel"].shape == (256 * (36 if name == "alexnet_torchvision" else 2), 4096)
    variables, _ = shapes(models.create(name, num_classes=None), 67, 99, 3)
    assert sorted(variables["params"]) == [f"conv{i}" for i in range(1, 6)]


def lrn(x, k, alpha):
    """Equation 14-2 in NumPy, radius 2."""
    x = np.asarray(x, np.float64)
    sums = [np.square(x[..., max(i - 2, 0) : i + 3]).sum(-1) for i in range(x.shape[-1])]
    return x / (k + alpha * np.stack(sums, -1)) ** 0.75


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "k", "alpha"), [("alexnet", 1, 2e-5), ("alexnet_two_tower", 2, 1e-4)])
def test_normalized_between_relu_and_pooling(name, k, alpha):
    model, variables, x = initialized(name)
    # Enlarged, so that the normalization does more than round.
    _, endpoints = jax.jit(model.apply)(jax.tree.map(lambda p: 4 * p, variables), x)
    for i in (1, 2):
        conv = endpoints[f"conv{i}"]
        assert float(conv.min()) == 0
        want = lrn(conv, k, alpha).astype(np.float32)
        assert np.abs(want * k**0.75 - conv).max() > 0.1 * np.abs(conv).max()
        np.testing.assert_allclose(endpoints[f"pool{i}"], nn.max_pool(want, 3, strides=2), rtol=1e-4)
    np.testing.assert_array_equal(endpoints["pool5"], nn.max_pool(endpoints["conv5"], 3, strides=2))


def seen_channels(name, source, output, features):
    """Mask of the features of ``source`` on which the first half of the features of ``output`` depends."""
    model, variables, x = initialized(name)

    def first_half(kernel):
        params = {**variables["params"], source: {**variables["params"][source], "kernel": kernel}}
        return model.apply({"params": params}, x)[1][output][..., : features // 2].sum()

    grad = jax.jit(jax.grad(first_half))(variables["params"][source]["kernel"])
    return np.asarray((grad != 0).any((0, 1, 2)))


@pytest.mark.exhaustive
def test_two_towers_meet_only_in_conv3_and_the_dense_layers():
    # Most, not all: a feature whose ReLU gives only zeros has no effect. The normalization reaches two features beyond
    # the border between the towers.
    for source, output, own in (("conv1", "conv2", 50), ("conv3", "conv5", 192)):
        seen = seen_channels("alexnet_two_tower", source, output, 256)
        assert seen[:own].mean() > 0.5
        assert not seen[own:].any()
    assert seen_channels("alexnet_two_tower", "conv2", "conv3", 384)[128:].mean() > 0.5
    assert seen_channels("alexnet", "conv1", "conv2", 256)[50:].mean() > 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "dropped"), [("alexnet", ["fc2", "head"]), ("alexnet_torchvision", ["fc1", "fc2"])])
def test_where_dropout_is(name, dropped):
    """The output of a layer with dropped inputs does not follow from the recorded inputs."""
    model, variables, x = initialized(name)
    logits, endpoints = jax.jit(functools.partial(model.apply, train=True))(variables, x, rngs={"dropout": KEY})
    last = endpoints["pool5"] if name == "alexnet" else nn.adaptive_avg_pool(endpoints["pool5"], 6)
    params = {**variables["params"], "head": variables["params"]["head"]["dense"]}
    inputs = {"fc1": last.reshape(2, -1), "fc2": endpoints["fc1"], "head": endpoints["fc2"]}
    differ = []
    for layer, given in {"fc1": endpoints["fc1"], "fc2": endpoints["fc2"], "head": logits}.items():
        want = inputs[layer] @ params[layer]["kernel"] + params[layer]["bias"]
        want = want if layer == "head" else jnp.maximum(want, 0)
        if np.abs(given - want).max() > 1e-3 * np.abs(want).max():
            differ.append(layer)
    assert differ == dropped


@pytest.mark.exhaustive
def test_remat_changes_no_result():
    promises.check_remat("alexnet", 67)
