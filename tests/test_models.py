"""Promises of every model, for each variant of ``models.names()``; and the chapter's CNN."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import functools
import re
from typing import NamedTuple
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen

from cnnjax import models
from cnnjax.models import lenet
from cnnjax.types import UserError

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": KEY}
# Deeper variants of a network that is tested with fewer layers.
DEEPER = re.compile(r"resnet(34|101|152)(_v1|_v2)?|seresnet(101|152)|vgg19|inception_v4|inception_resnet_v2|senet154")
CASES = [
    pytest.param(name, marks=[pytest.mark.exhaustive] if DEEPER.fullmatch(name) else []) for name in models.names()
]
every_model = pytest.mark.parametrize("name", CASES)
ONE_SIZE = ("lenet5", "lenet5_modern")  # 28 pixels, which they pad to 32 before the first layer
(COUNT,) = jax.export.symbolic_shape("n")


def images(shape, n=2):
    return np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# Shapes of everything, without computing. Tracing takes long, so tests share what they look at.


class Initialized(NamedTuple):
    variables: dict
    logits: jax.ShapeDtypeStruct | None
    endpoints: dict
    kernels: dict  # path of a convolution with 10³ to 10⁶ weights → (its initializer, the arguments of that)


class Applied(NamedTuple):
    logits: jax.ShapeDtypeStruct
    endpoints: dict
    dropout: list  # probabilities in the order of their use


@functools.cache
def initialized(name, train=False, **fields):
    model, kernels = models.create(name, **fields), {}
    param = linen.Module.param

    def record(self, key, init, *args, **kwargs):
        if key == "kernel" and len(args[0]) == 4 and 1000 <= np.prod(args[0]) <= 1_000_000:
            kernels["/".join(self.path)] = init, args
        return param(self, key, init, *args, **kwargs)

    x = jax.ShapeDtypeStruct((2, *model.image_shape), np.float32)
    with mock.patch.object(linen.Module, "param", record):
        init = functools.partial(model.init_with_output, train=train)
        (logits, endpoints), variables = jax.eval_shape(init, KEYS, x)
    return Initialized(variables, logits, endpoints, kernels)


@functools.cache
def applied(name, train):
    """The model applied to a batch of unknown size, as an export with a free batch size does."""
    model, rates = models.create(name), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, linen.Dropout) and context.module.rate and not context.module.deterministic:
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": KEY})
    x = jax.ShapeDtypeStruct((COUNT, *model.image_shape), np.float32)
    with linen.intercept_methods(record):
        (logits, endpoints), _ = jax.eval_shape(apply, initialized(name).variables, x)
    return Applied(logits, endpoints, rates)


@every_model
def test_training_has_the_same_variables(name):
    assert shapes(initialized(name, train=True).variables) == shapes(initialized(name).variables)


@every_model
def test_gives_logits_and_endpoints(name):
    model = models.create(name)
    logits, endpoints, _ = applied(name, False)
    assert logits.shape == (COUNT, model.num_classes)
    assert logits.dtype == jnp.float32
    assert endpoints
    assert all(x.shape[0] == COUNT for x in endpoints.values())
    documented = set(re.findall(r"\w+", type(model).__doc__ or ""))
    assert not endpoints.keys() - documented
    assert "pooled" in endpoints


@every_model
def test_without_classes_there_is_no_head(name):
    whole, base = initialized(name), initialized(name, num_classes=None)
    assert base.logits is None
    assert base.endpoints
    for layer, params in base.variables["params"].items():
        assert shapes(params) == shapes(whole.variables["params"][layer])


@every_model
def test_bfloat16_computes_in_it_but_keeps_float32_outside(name):
    low = initialized(name, dtype=jnp.bfloat16)
    assert low.logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(low.variables))
    assert {key: x.dtype for key, x in low.endpoints.items()} == dict.fromkeys(low.endpoints, jnp.bfloat16)


def test_weights_of_auxiliary_heads():
    """0.3 in the paper of GoogLeNet (sec. 5), 0.4 in the code of Inception v3; no weights where no head is built."""
    expected = {name: {"aux1": 0.3, "aux2": 0.3} for name in ("googlenet", "googlenet_bn", "se_googlenet")}
    expected["inception_v3"] = {"aux1": 0.4}
    assert {name: found for name in models.names() if (found := models.create(name).aux_weights)} == expected
    for name in expected:
        assert models.create(name, aux=False).aux_weights == models.create(name, num_classes=None).aux_weights == {}


@every_model
def test_auxiliary_heads_have_weights(name):
    """Auxiliary heads give float32 logits in training; their weights in the loss are those of the class."""
    model, endpoints = models.create(name), applied(name, True).endpoints
    auxiliary = {key: endpoints[key] for key in endpoints if key.startswith("aux")}
    assert auxiliary.keys() == model.aux_weights.keys()
    assert all((x.shape, x.dtype) == ((COUNT, model.num_classes), jnp.float32) for x in auxiliary.values())


@functools.cache
def feature_maps(name, *more):
    """Endpoints with four axes → (height, width) in the order in which the network computes them.

    The images have ``more`` (rows, columns) than the paper's.
    """
    model, found = models.create(name), {}

    def record(x):
        (_, endpoints), _ = model.init_with_output(KEYS, x)
        found.update({key: y.shape[1:3] for key, y in endpoints.items() if y.ndim == 4})

    shape = (1, *np.add(model.image_shape[:2], more), model.image_shape[2])
    jax.eval_shape(record, jax.ShapeDtypeStruct(shape, np.float32))
    return found


@every_model
def test_strides_are_those_of_all_feature_maps_from_shallow_to_deep(name):
    model = models.create(name)
    assert list(model.strides) == list(feature_maps(name, 0, 0 if name in ONE_SIZE else 13))
    assert list(model.strides.values()) == sorted(model.strides.values())


@pytest.mark.parametrize("name", [case for case in CASES if case.values[0] not in ONE_SIZE])
def test_an_image_larger_by_the_stride_has_a_map_larger_by_one(name):
    """This defines a total stride, also without padding; 32 and 64 pixels are multiples of every stride."""
    before, after = feature_maps(name, 0, 13), feature_maps(name, 32, 13 + 64)
    for key, stride in models.create(name).strides.items():
        assert np.subtract(after[key], before[key]).tolist() == [32 // stride, 64 // stride], key
        assert 32 % stride == 0


@pytest.mark.parametrize("name", ONE_SIZE)
def test_an_image_shifted_by_the_stride_has_a_map_shifted_by_one(name):
    model = models.create(name)
    variables = jax.jit(model.init)(KEYS, np.zeros((1, 32, 32, 1), np.float32))
    image = np.zeros((32, 32), np.float32)
    image[13:16, 12:16] = images((3, 4), 1)[0]
    apply = jax.jit(model.apply)
    for key, stride in model.strides.items():
        shifted = np.roll(image, stride, (0, 1))
        _, endpoints = apply(variables, np.stack([image, shifted])[..., None])
        one, other = endpoints[key]
        np.testing.assert_allclose(other[1:, 1:], one[:-1, :-1], rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(one[1:] - one[:-1]).max()) > 1e-3, key


# Networks that leave out padding, by their papers or their authors' code: their feature maps are smaller.
UNPADDED = {
    "lenet5": "convolutions",
    "lenet5_modern": "convolutions",
    "alexnet": "conv1 and max pooling",
    "alexnet_two_tower": "conv1 and max pooling",
    "alexnet_torchvision": "max pooling; conv1 is padded by 2 for 11 pixels",
    "zfnet": "conv2; conv1 is padded by 1 for 7 pixels",
    "inception_v3": "stem and grid reductions",
    "inception_v4": "stem and reductions",
    "inception_resnet_v2": "stem and reductions",
    "xception": "stem",
}


@every_model
def test_a_feature_map_has_the_images_size_over_its_stride(name):
    """Rounded up or down, for even and odd sizes; smaller where padding is left out, and only there."""
    model, smaller = models.create(name), 0
    for more in ((0, 0),) if name in ONE_SIZE else ((0, 13), (32, 13 + 64)):
        found = feature_maps(name, *more)
        for key, stride in model.strides.items():
            sides = np.add(model.image_shape[:2], more)
            assert (found[key] <= -(-sides // stride)).all(), key
            smaller += int((found[key] < sides // stride).sum())
    assert (smaller > 0) == (name in UNPADDED)


# Probabilities in the order in which a training step uses them (papers, and torchvision where it is named).
DROPOUT = {
    "fashion_cnn": [0.5, 0.5],
    "digits_cnn": [0.5, 0.5],
    "alexnet": [0.5, 0.5],
    "alexnet_two_tower": [0.5, 0.5],
    "alexnet_torchvision": [0.5, 0.5],
    "zfnet": [0.5, 0.5],
    "vgg16": [0.5, 0.5],
    "vgg19": [0.5, 0.5],
    "googlenet": [0.7, 0.7, 0.4],
    "googlenet_bn": [0.7, 0.7, 0.2],
    "se_googlenet": [0.7, 0.7, 0.2],
    "inception_v3": [0.5],
    "inception_v4": [0.2],
    "inception_resnet_v2": [0.2],
    "xception": [0.5],
    "mobilenet_v1": [1e-3],
    "mobilenet_v2": [0.2],
    "senet154": [0.2],
}


@every_model
@pytest.mark.parametrize("train", [True, False])
def test_dropout(name, train):
    assert applied(name, train).dropout == (DROPOUT.get(name, []) if train else [])


@every_model
def test_kernels_start_at_the_scale_of_their_fan(name):
    """Scales are between Glorot's and He's, by fan-in, fan-out or their mean: activations neither vanish nor grow.

    That of LeNet-5 is its paper's, uniform between ±2.4 / fan-in. Five kernels of each model are drawn.
    """
    model, kernels = models.create(name), initialized(name).kernels
    some = {path: kernels[path] for path in list(kernels)[:: -(-len(kernels) // 5)]}
    deviations = jax.jit(lambda: {path: init(KEY, *args).std() for path, (init, args) in some.items()})()
    for path, deviation in deviations.items():
        _, ((*sides, channels, features), *_) = some[path]
        area = np.prod(sides)
        if isinstance(model, lenet.LeNet5):
            assert deviation == pytest.approx(2.4 / (area * channels) / 3**0.5, rel=0.05)
            continue
        gains = [deviation * (area * fan) ** 0.5 for fan in (channels, (channels + features) / 2, features)]
        assert any(0.95 < gain < 1.5 for gain in gains), (path, gains)


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
    model = models.create("fashion_cnn")
    x = images(model.image_shape, 4)
    variables = jax.jit(model.init)(KEYS, x)
    assert sum(p.size for p in jax.tree.leaves(variables)) == 1_413_834
    twin = chapter_model()
    names = ["conv1", "conv2a", "conv2b", "conv3a", "conv3b", "dense1", "dense2", "head"]
    rng = np.random.default_rng(0)
    # Biases are drawn too: their initial value, zero, would hide a mistake.
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


def test_kinds_of_models_are_listed_apart():
    with pytest.raises(UserError, match="unknown kind of models 'detector'; kinds: classification, detection, segm"):
        models.names("detector")
    assert not set(models.names()) & set(models.names("detection"))
