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
from cnnjax.tasks import classify
from cnnjax.types import UserError

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": KEY}
SIZES = (32, 48, 64, 80, 96, 128)  # pixels; of these a model's tests take the smallest that it admits
every_model = pytest.mark.parametrize("name", models.names())


def images(shape, n=2):
    return np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)


def takes(model, shape):
    try:
        jax.eval_shape(model.init, KEYS, images(shape))
    except ValueError:
        return False
    return True


def small_shape(model):
    """A small image shape that the model admits."""
    channels = model.image_shape[-1]
    shapes = [(size, size, channels) for size in SIZES if size < model.image_shape[0]]
    return next((shape for shape in shapes if takes(model, shape)), model.image_shape)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def abstract(model, **kwargs):
    """Variables and outputs as shapes, without computing."""
    x = images(model.image_shape)
    variables = jax.eval_shape(model.init, KEY, x)
    return variables, jax.eval_shape(functools.partial(model.apply, **kwargs), variables, x)


@functools.cache
def initialized(name):
    """Model, variables and images of a small size, computed once for the tests below."""
    model = models.create(name)
    x = images(small_shape(model), 4)
    return model, jax.jit(model.init)(KEYS, x), x


@every_model
def test_training_has_the_same_variables(name):
    model = models.create(name)
    x = images(model.image_shape)
    train, test = (jax.eval_shape(functools.partial(model.init, train=flag), KEYS, x) for flag in (True, False))
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
def test_auxiliary_heads_have_weights(name):
    """In training they give float32 logits; their weights in the loss are the class'."""
    model = models.create(name)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    x = images(model.image_shape)
    (_, endpoints), _ = jax.eval_shape(apply, jax.eval_shape(model.init, KEYS, x), x)
    auxiliary = {key: endpoints[key] for key in endpoints if key.startswith("aux")}
    assert auxiliary.keys() == getattr(model, "aux_weights", {}).keys()
    assert all((x.shape, x.dtype) == ((2, model.num_classes), jnp.float32) for x in auxiliary.values())


@every_model
def test_a_gradient_step_reaches_every_parameter_and_lowers_the_loss(name):
    model, variables, x = initialized(name)
    params, state = variables["params"], {key: value for key, value in variables.items() if key != "params"}
    compute = classify.loss_fn(model)
    labels = jnp.arange(len(x)) % model.num_classes

    def loss(params):
        return compute({"params": params, **state}, {"image": x, "label": labels}, KEY)[0]

    @jax.jit
    def step(params):
        """Down the gradient, until by its slope a hundredth of the loss is gone: twice, and the losses before."""
        before, gradient = jax.value_and_grad(loss)(params)
        rate = 0.01 * before / sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient))
        return before, gradient, jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    before, gradient, params = step(params)
    after, _, _ = step(params)
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradient) if not g.any()]
    assert not dead
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert after < before


@every_model
def test_each_image_for_itself(name):
    model, variables, x = initialized(name)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits, _ = apply(variables, x)
    np.testing.assert_array_equal(logits, apply(variables, x)[0])
    largest = float(jnp.abs(logits).max())
    assert largest > 0
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-4 * largest
    swapped, _ = apply(variables, x[::-1])
    np.testing.assert_allclose(swapped[::-1], logits, rtol=1e-5, atol=1e-5 * largest)


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
