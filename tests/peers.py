"""Comparing our models with others' implementations: the same random weights, then logits and statistics.

The weights pass through a file that the peer's own library writes and ``weights.load`` reads, as for a user of
published weights.
"""

import contextlib
import functools
import operator
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax
import flax.linen as linen
import jax
import numpy as np

from cnnjax import models, weights
from cnnjax.weights import layouts, rules

# Half the time to compile; the results of the operations are the same.
FAST = {"xla_backend_optimization_level": "0"}
TOLERANCE = 1e-4  # of the largest: in float32, two implementations sum in different orders
# In training a deep network with random weights amplifies rounding, a hundredfold and more; there both use float64.
TOLERANCE_64 = 1e-6
TOLERANCE_HEAD = 1e-5  # of logits in training: the head stays float32, whose sum over 2,048 features rounds by 1e-6
RESIDUAL = 0.2  # scale of the last BatchNorm of residual branches, so that they do not amplify it without bound


def random_like(name, shape, fan_in, rng):
    """Random weight of the right scale for its kind, so that activations neither vanish nor grow."""
    if name == "kernel":
        return rng.normal(size=shape, scale=(2 / fan_in) ** 0.5).astype(np.float32)
    if name in ("scale", "var"):
        return rng.uniform(0.5, 1.5, size=shape).astype(np.float32)
    return rng.normal(size=shape, scale=0.1).astype(np.float32)


def images(shape, batch, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def close(ours, theirs, tolerance=TOLERANCE, what="logits"):
    """Largest difference over largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    largest = np.abs(theirs).max()
    assert np.isfinite(largest), what
    assert largest > 0, what
    error = np.abs(ours - theirs).max() / largest
    assert error <= tolerance, f"{what}: off by {error:.2e} of the largest"


def _statistics(model, shape, kind, known):
    """Our BatchNorm statistics → the peer's key for each, by the layout whose keys ``known`` has."""
    paths = [path for path in rules.structure(model, shape).slots if path[0] == "batch_stats"]
    for name, layout in layouts.for_model(model).items():
        if name.startswith("keras") == (kind == "keras"):
            keys = {path: rules.target(layout, kind, path) for path in paths}
            if known.keys() >= set(keys.values()):
                return keys
    raise AssertionError(f"no layout of {type(model).__name__} knows these keys: {sorted(known)[:5]}…")


def _float64(variables):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables)


def drawn(model, shape, seed=0):
    """Random variables for images of this shape, of scales with which activations neither vanish nor grow."""
    rng = np.random.default_rng(seed)
    slots = sorted(rules.structure(model, shape).slots.items())
    values = {path: random_like(path[-1], slot.shape, np.prod(slot.shape[:-1]), rng) for path, slot in slots}
    return flax.traverse_util.unflatten_dict(values)


# torch


def randomize_torch(peer, residual=None, seed=0):
    """Draws every weight and statistic of a torch module anew, in place; ``residual``: regex of the last norms."""
    import torch

    rng = np.random.default_rng(seed)
    norms = (torch.nn.BatchNorm2d,)
    for path, module in peer.named_modules():
        kinds = {"weight": "scale" if isinstance(module, norms) else "kernel", "bias": "bias"}
        kinds |= {"running_mean": "mean", "running_var": "var"}
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, value in own:
            if name in kinds:
                fan_in = int(np.prod(value.shape[1:])) if value.ndim > 1 else 1
                drawn = random_like(kinds[name], tuple(value.shape), fan_in, rng)
                factor = RESIDUAL if residual and kinds[name] == "scale" and re.search(residual, path) else 1
                value.data = torch.from_numpy(factor * drawn)
    return peer


def save_torch(peer, path, saved):
    """Writes the peer's weights: ``saved`` is "zip" or "legacy", torch's formats, or "safetensors"."""
    import torch
    from safetensors.torch import save_file

    if saved == "safetensors":
        save_file(peer.state_dict(), path)
    else:
        torch.save(peer.state_dict(), path, _use_new_zipfile_serialization=saved == "zip")


def check_torch(
    name, make_peer, sizes, *, saved="zip", train_size=64, batch=4, residual=None, outputs=lambda x: [x], **fields
):
    """Logits in inference on all ``sizes`` (pixels), then one step in training mode: logits and BatchNorm statistics.

    ``make_peer()`` gives the torch module, without dropout; ``saved`` is the format of its weights; ``outputs(peer's
    result)`` → [logits, aux…] in the order of our logits and ``aux…`` endpoints. Without ``train_size`` no training.
    """
    import torch

    model = models.create(name, **fields)
    peer = randomize_torch(make_peer(), residual).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_torch(peer, Path(folder, "peer"), saved)
        variables = weights.load(Path(folder, "peer"), model)
    for size in sizes:
        x = images((*((size, size) if isinstance(size, int) else size), 3), 2)
        logits, _ = jax.jit(functools.partial(model.apply, train=False), compiler_options=FAST)(variables, x)
        with torch.no_grad():
            close(logits, outputs(peer(torch.from_numpy(x.transpose(0, 3, 1, 2))))[0], what=f"{name} at {size}")
    if train_size is not None:
        _check_torch_training(name, model, variables, peer, (train_size, train_size, 3), batch, outputs)


def _check_torch_training(name, model, variables, peer, shape, batch, outputs):
    import torch

    peer, variables = peer.double().train(), _float64(variables)
    x = images(shape, batch, seed=1).astype(np.float64)
    with jax.enable_x64(True):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        apply = jax.jit(apply, compiler_options=FAST)
        (logits, endpoints), new = apply(variables, x, rngs={"dropout": jax.random.key(0)})
    norms = {key: module for key, module in peer.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    before = {key: value.numpy().copy() for key, value in peer.state_dict().items()}
    counts = {}
    for key, module in norms.items():
        module.register_forward_hook(
            lambda _, inputs, __, key=key: counts.update({key: inputs[0].numel() / inputs[0].shape[1]})
        )
    with torch.no_grad():
        theirs = outputs(peer(torch.from_numpy(x.transpose(0, 3, 1, 2))))
    ours = [logits, *(endpoints[key] for key in sorted(endpoints) if key.startswith("aux"))]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(a, b, TOLERANCE_HEAD, f"{name} in training, output {i}")
    after = peer.state_dict()
    for (_, *path), key in _statistics(model, shape, "torch", after).items():
        expected, norm = after[key].numpy() - before[key], key.rpartition(".")[0]
        if path[-1] == "var":  # torch keeps the unbiased variance
            rate, n = norms[norm].momentum, counts[norm]
            expected = (expected + rate * before[key]) * (n - 1) / n - rate * before[key]
        _close_change(new, variables, path, expected, f"{name}: {key}")


def _close_change(new, old, path, expected, what):
    """A statistic's step: unlike its value it is the same where the mean has taken in the bias of a convolution."""
    ours = (functools.reduce(operator.getitem, path, x["batch_stats"]) for x in (new, old))
    close(np.subtract(*ours), expected, TOLERANCE_64, f"{what}, its change in a step")


# Keras


@contextlib.contextmanager
def undrawn():
    """Keras models made within hold zeros, to be replaced: to draw them compiles a program for each shape."""
    import keras

    with contextlib.ExitStack() as stack:
        for kind in (keras.initializers.VarianceScaling, keras.initializers.Ones, keras.initializers.Zeros):
            zeros = mock.patch.object(kind, "__call__", lambda self, shape, dtype=None: np.zeros(shape, dtype))
            stack.enter_context(zeros)
        yield


def randomize_keras(peer, residual=None, seed=0):
    """Draws every weight and statistic of a Keras model anew, see ``randomize_torch``."""
    rng = np.random.default_rng(seed)
    kinds = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var", "bias": "bias"}
    for layer in peer.layers:
        values = []
        for weight in layer.weights:
            depthwise = layer.__class__.__name__ == "DepthwiseConv2D" or "depthwise" in weight.name
            fan_in = np.prod(weight.shape[:2]) if depthwise else np.prod(weight.shape[:-1])
            drawn = random_like(kinds.get(weight.name, "kernel"), tuple(weight.shape), fan_in, rng)
            factor = RESIDUAL if residual and weight.name == "gamma" and re.search(residual, layer.name) else 1
            values.append(factor * drawn)
        layer.set_weights(values)
    return peer


def check_keras(name, make_peer, sizes, *, saved="weights.h5", train_size=64, batch=4, residual=None, **fields):
    """Compares with Keras as ``check_torch`` does; ``make_peer(shape)`` gives its model, ``name`` may be our model.

    ``saved``: "weights.h5" and "keras" are Keras 3's files, "h5" is the old format.
    """
    model = name if isinstance(name, linen.Module) else models.create(name, **fields)
    known = {}  # by the shapes of the peer's weights, some of which depend on the image size

    def prepared(shape):
        """The peer for images of this shape, and our variables with its weights."""
        with undrawn():
            peer = make_peer(shape)
        key = tuple(tuple(w.shape) for layer in peer.layers for w in layer.weights)
        if key in known:
            for layer, values in zip(peer.layers, known[key][0], strict=True):
                layer.set_weights([x.astype(w.dtype) for x, w in zip(values, layer.weights, strict=True)])
        else:
            randomize_keras(peer, residual)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"peer.{saved}")
                (peer.save_weights if saved == "weights.h5" else peer.save)(path)
                ours = weights.load(path, model, image_size=shape[:2])
            known[key] = [[np.asarray(w.value) for w in layer.weights] for layer in peer.layers], ours
        return peer, known[key][1]

    def run(size, train):
        """(Our logits, theirs), (our variables before, our new statistics, the changes of theirs)."""
        shape = (*((size, size) if isinstance(size, int) else size), 3)
        peer, variables = prepared(shape)
        x = images(shape, batch if train else 2)
        if train:
            x, variables = x.astype(np.float64), _float64(variables)
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        jit = functools.partial(jax.jit, compiler_options=FAST)
        (logits, _), new = jit(apply)(variables, x, rngs={"dropout": jax.random.key(0)})
        call = jit(functools.partial(peer.stateless_call, training=train))
        trainable, fixed = ([v.value for v in vs] for vs in (peer.trainable_variables, peer.non_trainable_variables))
        theirs, after = call(trainable, fixed, x)
        owner = {id(w): f"{layer.name}/{w.name}" for layer in peer.layers for w in layer.weights}
        pairs = zip(peer.non_trainable_variables, after, strict=True)
        changes = {owner[id(v)]: np.subtract(later, v.value) for v, later in pairs if id(v) in owner}
        return (logits, theirs), (variables, new, changes)

    for size in sizes:
        logits, _ = run(size, train=False)
        close(*logits, what=f"{name} at {size}")
    with jax.enable_x64(True), float64_keras():
        logits, (old, new, changes) = run(train_size, train=True)
    close(*logits, TOLERANCE_HEAD, f"{name} in training")
    for (_, *path), key in _statistics(model, (train_size, train_size, 3), "keras", changes).items():
        _close_change(new, old, path, changes[key], f"{name}: {key}")


@contextlib.contextmanager
def float64_keras():
    """Makes Keras models in the block float64, with BatchNorm's sums, which are float32 otherwise."""
    import keras
    from keras.src.backend.common import dtypes

    narrowed = dtypes.BIT64_TO_BIT32_DTYPE["float64"]
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = narrowed
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
