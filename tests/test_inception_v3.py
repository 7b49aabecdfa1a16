"""Inception v3: the paper's Table 1, counts, the auxiliary head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import FAST

from cnnjax import models
from cnnjax.models import inception_v3

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": KEY}


def variables_of(model, shape=(299, 299, 3)):
    """Variables as shapes."""
    return jax.eval_shape(model.init, KEYS, jax.ShapeDtypeStruct((1, *shape), np.float32))


def count(tree):
    return sum(p.size for p in jax.tree.leaves(tree))


def outputs(model, size, train):
    x = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    apply = functools.partial(model.apply, train=train, rngs={"dropout": KEY}, mutable=["batch_stats"])
    return jax.eval_shape(apply, variables_of(model, (size, size, 3)), x)[0]


@pytest.mark.exhaustive
def test_counts():
    whole, without = (variables_of(models.create("inception_v3", aux=aux)) for aux in (True, False))
    assert count(whole["params"]) == 27_161_264
    assert count(variables_of(models.create("inception_v3"), (80, 75, 3))["params"]) == 27_161_264
    assert count(without["params"]) == 23_834_568
    # Keras counts the statistics too, and has no scales, which are half as many.
    assert count(without["batch_stats"]) == 34_432
    assert count(without) - 34_432 // 2 == 23_851_784
    headless = variables_of(models.create("inception_v3", num_classes=None))["params"]
    assert set(headless) == set(without["params"]) - {"head"}


def test_the_papers_table():
    logits, endpoints = outputs(models.create("inception_v3"), 299, train=False)
    sizes = {"conv3": (147, 64), "conv5": (71, 192), "mixed5b": (35, 256), "mixed5c": (35, 288), "mixed5d": (35, 288)}
    sizes |= {f"mixed6{letter}": (17, 768) for letter in "abcde"}
    sizes |= {"mixed7a": (8, 1280), "mixed7b": (8, 2048), "mixed7c": (8, 2048)}
    shapes = {name: (2, size, size, features) for name, (size, features) in sizes.items()}
    assert {name: x.shape for name, x in endpoints.items()} == shapes | {"pooled": (2, 2048)}
    assert logits.shape == (2, 1000)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [75, 299])
def test_auxiliary_logits_in_training_only(size):
    model = models.create("inception_v3", num_classes=7, dtype=jnp.bfloat16)
    assert "aux1" not in outputs(model, size, train=False)[1]
    logits = outputs(model, size, train=True)[1]["aux1"]
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    for other in (models.create("inception_v3", aux=False), models.create("inception_v3", num_classes=None)):
        assert "aux1" not in outputs(other, size, train=True)[1]


@pytest.mark.exhaustive
def test_remat_gives_the_same_loss_and_gradient(monkeypatch):
    kept = ("mixed5b", "mixed6e", "mixed7a")  # compiles in a fraction of the time
    monkeypatch.setattr(inception_v3, "_MODULES", {name: inception_v3._MODULES[name] for name in kept})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 75, 75, 3)).astype(np.float32)
    abstract = jax.eval_shape(models.create("inception_v3", num_classes=5).init, KEYS, x)
    # In float64: random deep networks enlarge float32's rounding, which differs between two programs.
    variables = jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.1), abstract)
    x, found = x.astype(np.float64), []
    for remat in (False, True):
        model = models.create("inception_v3", num_classes=5, remat=remat)

        def loss(params, model=model):
            (logits, endpoints), _ = model.apply(
                {**variables, "params": params}, x, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
            )
            return jnp.square(logits - 1).sum() + endpoints["aux1"].sum()

        with jax.enable_x64(True):
            found.append(jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(variables["params"]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *found)
    assert set(kept) < variables["params"].keys()


def test_smallest_images():
    model = models.create("inception_v3")
    outputs(model, 75, train=True)
    with pytest.raises(ValueError, match=r"at least 75 by 75 pixels, got shape \(1, 74, "):
        variables_of(model, (74, 299, 3))
    assert variables_of(model, (80, 75, 1))["params"]["conv1"]["conv"]["kernel"].shape == (3, 3, 1, 32)
