"""GoogLeNet: the paper's Table 1, counts, auxiliary heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import FAST

from cnnjax import models, nn
from cnnjax.models import googlenet

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": KEY}
NAMES = ("googlenet", "googlenet_bn", "se_googlenet")
EXHAUSTIVE = pytest.mark.exhaustive
every_variant = pytest.mark.parametrize("name", NAMES)


def params(model, shape=(224, 224, 3)):
    """Parameters as shapes."""
    return jax.eval_shape(model.init, KEYS, jax.ShapeDtypeStruct((1, *shape), np.float32))["params"]


def count(tree):
    return sum(p.size for p in jax.tree.leaves(tree))


def outputs(model, size, train):
    x = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    apply = functools.partial(model.apply, train=train, rngs={"dropout": KEY}, mutable=["batch_stats"])
    return jax.eval_shape(apply, jax.eval_shape(model.init, KEYS, x), x)[0]


@pytest.mark.parametrize(
    ("name", "without", "heads"),
    [
        ("googlenet", 6_998_552, 13_378_280),
        ("googlenet_bn", 6_624_904, 13_004_888),
    ],
)
def test_counts(name, without, heads):
    assert count(params(models.create(name, aux=False))) == without
    assert count(params(models.create(name))) == heads
    assert count(params(models.create(name), (97, 64, 3))) == heads
    assert set(params(models.create(name, num_classes=None))) == set(params(models.create(name, aux=False))) - {"head"}


def test_se_googlenet_adds_two_dense_layers_to_every_module():
    plain, excited = (params(models.create(name)) for name in ("googlenet_bn", "se_googlenet"))
    extra = {name: count(excited[name]) - count(plain[name]) for name in plain}
    features = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
    expected = {f"inception{name}": 2 * c * (c // 16) + c // 16 + c for name, c in features.items()}
    assert extra == {name: expected.get(name, 0) for name in plain}


# Name, output's size and features, thousands (1,024) of parameters: the paper's, except five that do not follow from
# its own features. It says 2.7 for conv1, where 7×7×3×64 = 9.2, then 463 for 4c, 580 for 4d, 1072 for 5a and 1388 for
# 5b.
TABLE = (
    ("conv1", 112, 64, 9.2),
    ("conv2", 56, 192, 112),
    ("inception3a", 28, 256, 159),
    ("inception3b", 28, 480, 380),
    ("inception4a", 14, 512, 364),
    ("inception4b", 14, 512, 437),
    ("inception4c", 14, 512, 498),
    ("inception4d", 14, 528, 591),
    ("inception4e", 14, 832, 840),
    ("inception5a", 7, 832, 1019),
    ("inception5b", 7, 1024, 1410),
    ("head", None, 1000, 1000),
)


def test_the_papers_table():
    model = models.create("googlenet")
    variables = params(model)
    logits, endpoints = outputs(model, 224, train=False)
    for name, size, features, thousands in TABLE:
        own = count(variables[name]) + (count(variables["conv2_reduce"]) if name == "conv2" else 0)
        assert own / 1024 == pytest.approx(thousands, rel=0.01), name
        if size is not None:
            assert endpoints[name].shape == (2, size, size, features)
    assert endpoints["pooled"].shape == (2, 1024)
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("name", [pytest.param(x, marks=EXHAUSTIVE) if x != "googlenet" else x for x in NAMES])
def test_auxiliary_logits_in_training_only(name):
    model = models.create(name, num_classes=7, dtype=jnp.bfloat16)
    _, endpoints = outputs(model, 64, train=False)
    assert not model.aux_weights.keys() & endpoints.keys()
    _, endpoints = outputs(model, 64, train=True)
    for key in model.aux_weights:
        assert (endpoints[key].shape, endpoints[key].dtype) == ((2, 7), jnp.float32)
    for other in (models.create(name, aux=False), models.create(name, num_classes=None)):
        assert not model.aux_weights.keys() & outputs(other, 64, train=True)[1].keys()


@pytest.mark.exhaustive
def test_remat_gives_the_same_loss_and_gradient(monkeypatch):
    kept = ("inception3a", "inception4a")  # compiles in a fraction of the time
    monkeypatch.setattr(googlenet, "_MODULES", {name: googlenet._MODULES[name] for name in kept})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = []
    abstract = jax.eval_shape(models.create("se_googlenet", num_classes=5).init, KEYS, x)
    variables = jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.1).astype(p.dtype), abstract)
    for remat in (False, True):
        model = models.create("se_googlenet", num_classes=5, remat=remat)

        def loss(params, model=model):
            (logits, endpoints), _ = model.apply(
                {**variables, "params": params}, x, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
            )
            return jnp.square(logits - 1).sum() + endpoints["aux1"].sum()

        found.append(jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(variables["params"]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *found)
    assert set(kept) < variables["params"].keys()


@every_variant
def test_smallest_images(name):
    model = models.create(name)
    smallest = 31 if name == "googlenet" else 15
    outputs(model, smallest, train=True)
    with pytest.raises(ValueError, match=rf"at least {smallest} by {smallest} pixels, got shape \(1, {smallest - 1}, "):
        params(model, (smallest - 1, 224, 3))
    assert params(model, (64, 48, 1))["conv1"]["conv"]["kernel"].shape == (7, 7, 1, 64)


def test_normalization_follows_the_first_pooling_and_the_second_convolution():
    """All other layers are the identity: a bright feature map dims its neighbors, twice."""
    model = models.create("googlenet", num_classes=None)
    x = np.full((1, 32, 32, 1), 300.0, np.float32)
    variables = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), jax.eval_shape(model.init, KEYS, x))
    layers = variables["params"]
    layers["conv1"]["conv"]["kernel"][3, 3, 0, :2] = (1, 0.01)
    layers["conv2_reduce"]["conv"]["kernel"][0, 0] = np.eye(64)
    layers["conv2"]["conv"]["kernel"][1, 1] = np.eye(64, 192)
    layers["inception3a"]["conv1x1"]["conv"]["kernel"][0, 0] = np.eye(192, 64)
    names = ("conv2", "inception3a")
    found = jax.jit(lambda *args: [model.apply(*args)[1][name] for name in names])(variables, x)
    expected = np.zeros(64, np.float32)
    expected[:2] = 300, 3
    for feature_maps in found:
        expected = np.asarray(nn.local_response_norm(expected))
        assert expected[1] < 1.5  # by half, then by a fifth
        np.testing.assert_allclose(feature_maps[0, 0, 0, :64], expected, rtol=1e-5)
