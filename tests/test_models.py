"""What every model promises, for every variant that ``models.names()`` finds; and the chapter's CNN."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cnnjax import models
from cnnjax.types import UserError

KEY = jax.random.key(0)
every_model = pytest.mark.parametrize("name", models.names())


def images(model, n=2):
    return np.random.default_rng(0).uniform(size=(n, *model.image_shape)).astype(np.float32)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def abstract(model, **kwargs):
    """Variables and outputs as shapes, without computing."""
    x = images(model)
    variables = jax.eval_shape(model.init, KEY, x)
    return variables, jax.eval_shape(functools.partial(model.apply, **kwargs), variables, x)


@functools.cache
def initialized(name):
    """Model, variables and images, computed once for the tests below."""
    model = models.create(name)
    return model, jax.jit(model.init)(KEY, images(model)), images(model)


@every_model
def test_training_has_the_same_variables(name):
    model = models.create(name)
    keys = {"params": KEY, "dropout": KEY}
    train, test = (
        jax.eval_shape(functools.partial(model.init, train=flag), keys, images(model)) for flag in (True, False)
    )
    assert shapes(train) == shapes(test)


@every_model
def test_gives_logits_and_endpoints(name):
    model = models.create(name)
    _, (logits, endpoints) = abstract(model, train=False)
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32
    assert endpoints
    assert all(x.shape[0] == 2 for x in endpoints.values())
    undocumented = [key for key in endpoints if key not in (type(model).__doc__ or "")]
    assert not undocumented


@every_model
def test_without_classes_there_is_no_head(name):
    whole, _ = abstract(models.create(name), train=False)
    variables, (logits, endpoints) = abstract(models.create(name, num_classes=None), train=False)
    assert logits is None
    assert endpoints
    for layer, params in variables["params"].items():
        assert shapes(params) == shapes(whole["params"][layer])


@every_model
def test_bfloat16_computes_in_it_but_keeps_float32_outside(name):
    variables, (logits, endpoints) = abstract(models.create(name, dtype=jnp.bfloat16), train=False)
    assert logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    assert {key: x.dtype for key, x in endpoints.items()} == dict.fromkeys(endpoints, jnp.bfloat16)


@every_model
def test_gradient_reaches_every_parameter(name):
    model, variables, x = initialized(name)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=False)
        return jnp.square(logits + jnp.arange(logits.shape[1])).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(grads) if not g.any()]
    assert not dead
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@every_model
def test_deterministic_and_image_by_image(name):
    model, variables, x = initialized(name)
    again = jax.jit(model.init)(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits, _ = apply(variables, x)
    np.testing.assert_array_equal(logits, apply(variables, x)[0])
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 0
    swapped, _ = apply(variables, x[::-1])
    np.testing.assert_allclose(swapped[::-1], logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_name_is_answered_with_the_close_ones():
    with pytest.raises(UserError, match=r"'lenet'.*did you mean lenet5.*choices: .*fashion_cnn.*lenet5"):
        models.create("lenet")
    with pytest.raises(UserError, match=r"unknown model 'zzz'; choices: .*lenet5"):
        models.create("zzz")


def test_an_unknown_field_is_answered_with_the_fields():
    with pytest.raises(UserError, match=r"fashion_cnn has no field drop_out; its fields: num_classes, .*dropout"):
        models.create("fashion_cnn", drop_out=0.1)


def chapter_model():
    """The chapter's code."""
    layers = keras.layers
    conv = functools.partial(layers.Conv2D, activation="relu", padding="same")
    return keras.models.Sequential(
        [
            keras.Input((28, 28, 1)),
            conv(64, 7),
            layers.MaxPooling2D(2),
            conv(128, 3),
            conv(128, 3),
            layers.MaxPooling2D(2),
            conv(256, 3),
            conv(256, 3),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def test_fashion_cnn_is_the_chapters_model():
    model, variables, x = initialized("fashion_cnn")
    assert sum(p.size for p in jax.tree.leaves(variables)) == 1_413_834
    twin = chapter_model()
    names = ["conv1", "conv2a", "conv2b", "conv3a", "conv3b", "dense1", "dense2", "head"]
    rng = np.random.default_rng(0)
    # Biases are drawn too: at their start, zero, they would hide a mistake.
    params = {
        name: {
            "kernel": np.asarray(variables["params"][name]["kernel"]) * 1.5,
            "bias": rng.normal(size=variables["params"][name]["bias"].shape).astype(np.float32) * 0.1,
        }
        for name in names
    }
    twin.set_weights([params[name][kind] for name in names for kind in ("kernel", "bias")])
    logits, _ = jax.jit(model.apply)({"params": params}, x)
    assert float(logits.std()) > 0.1
    np.testing.assert_allclose(jax.nn.log_softmax(logits), np.log(twin.predict(x, verbose=0)), atol=1e-5)


def test_fashion_cnn_drops_in_training_only():
    model = models.create("fashion_cnn", dropout=0.9)
    x = np.ones((4, 8, 8, 1), np.float32)
    variables = jax.jit(model.init)(KEY, x)
    train = jax.jit(lambda seed: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    (one, _), (two, _), (three, _) = train(1), train(2), train(1)
    assert float(jnp.abs(one - two).max()) > 0
    np.testing.assert_array_equal(one, three)
    apply = functools.partial(models.create("fashion_cnn", dropout=0.0).apply, train=True)
    still, _ = jax.jit(apply)(variables, x, rngs={"dropout": KEY})
    np.testing.assert_allclose(still, jax.jit(model.apply)(variables, x)[0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 7, 8, 1), (1, 28, 5, 3), (28, 28, 1)])
def test_fashion_cnn_names_the_smallest_image(shape):
    with pytest.raises(ValueError, match=rf"at least 8 by 8 pixels, got shape \({shape[0]}, "):
        jax.eval_shape(models.create("fashion_cnn").init, KEY, np.zeros(shape, np.float32))
    jax.eval_shape(models.create("fashion_cnn").init, KEY, np.zeros((1, 8, 31, 3), np.float32))
