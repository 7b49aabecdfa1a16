"""Comparing our models with others' implementations: the same random weights, then logits and statistics.

A peer's module is found from ours by ``rename``: path such as ``stage1/block2/conv1/conv`` → the peer's name for it.
Every parameter must be filled once and every weight of the peer used once.
"""

import contextlib
import functools
import os
import re

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax
import jax
import numpy as np

from cnnjax import models

# Half the time to compile; what the operations compute is the same.
FAST = {"xla_backend_optimization_level": "0"}
TOLERANCE = 1e-4  # of the largest: in float32, two implementations sum in different orders
# In training a deep network with random weights amplifies rounding, a hundredfold and more; there both use float64.
TOLERANCE_64 = 1e-6
TOLERANCE_HEAD = 1e-5  # of logits in training: the head stays float32, whose sum over 2,048 features rounds by 1e-6
RESIDUAL = 0.2  # scale of the last BatchNorm of residual branches, so that they do not amplify it without bound


def random_like(name, shape, fan_in, rng):
    """A weight of the right scale for its kind, so that activations neither vanish nor grow."""
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


def _flat(model, shape):
    """Our variables as shapes: (collection, path, leaf) → shape."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    tree = jax.eval_shape(model.init, keys, jax.ShapeDtypeStruct((1, *shape), np.float32))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def _filled(model, shape, find, unused):
    """Variables from ``find(path of the module, leaf, shape)``; ``unused()`` lists what nobody asked for."""
    flat = _flat(model, shape)
    values = {}
    for (collection, *path, leaf), size in flat.items():
        value = np.asarray(find("/".join(path), leaf, size))
        assert value.shape == size, (path, leaf, value.shape, size)
        values[collection, *path, leaf] = value
    assert not unused(), f"not used: {sorted(unused())[:20]}"
    return flax.traverse_util.unflatten_dict(values)


def drawn(model, shape, seed=0):
    """Variables for images of this shape, random, but of scales that serve."""
    rng = np.random.default_rng(seed)
    values = {
        path: random_like(path[-1], size, np.prod(size[:-1]), rng) for path, size in sorted(_flat(model, shape).items())
    }
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


def from_torch(model, shape, peer, rename, flattened=None):
    """Our variables with the peer's weights.

    ``flattened``: our dense layer after a flattened map → (maps, h, w), whose order torch has.
    """
    state = {k: v.numpy().copy() for k, v in peer.state_dict().items() if not k.endswith("num_batches_tracked")}
    left = set(state)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

    def find(path, leaf, size):
        key = f"{rename(path)}.{names[leaf]}"
        left.remove(key)
        value = state[key]
        if leaf != "kernel":
            return value
        if path in (flattened or {}):
            value = value.reshape(-1, *flattened[path]).transpose(0, 2, 3, 1).reshape(len(value), -1)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return value.reshape(size) if value.shape[:2] == (1, 1) or value.ndim == 2 else value

    return _filled(model, shape, find, lambda: left)


def check_torch(
    name,
    make_peer,
    rename,
    sizes,
    *,
    train_size=64,
    batch=4,
    residual=None,
    flattened=None,
    outputs=None,
    **fields,
):
    """Logits in inference on all ``sizes`` (pixels), then one step in training mode: logits and BatchNorm statistics.

    ``make_peer()`` gives the torch module, without dropout; ``outputs(peer's result)`` → [logits, aux…] in the order
    of our logits and ``aux…`` endpoints.
    """
    import torch

    outputs = outputs or (lambda result: [result])
    model = models.create(name, **fields)
    peer = randomize_torch(make_peer(), residual).eval()
    for size in sizes:
        shape = (*((size, size) if isinstance(size, int) else size), 3)
        variables = from_torch(model, shape, peer, rename, flattened)
        x = images(shape, 2)
        logits, _ = jax.jit(functools.partial(model.apply, train=False), compiler_options=FAST)(variables, x)
        with torch.no_grad():
            close(logits, outputs(peer(torch.from_numpy(x.transpose(0, 3, 1, 2))))[0], what=f"{name} at {size}")
    shape = (train_size, train_size, 3)
    peer = peer.double()
    variables = from_torch(model, shape, peer, rename, flattened)
    x = images(shape, batch, seed=1).astype(np.float64)
    with jax.enable_x64(True):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        apply = jax.jit(apply, compiler_options=FAST)
        (logits, endpoints), new = apply(variables, x, rngs={"dropout": jax.random.key(0)})
    counts = {}
    for key, module in peer.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, key=key: counts.update({key: inputs[0].numel() / inputs[0].shape[1]})
            )
    with torch.no_grad():
        theirs = outputs(peer.train()(torch.from_numpy(x.transpose(0, 3, 1, 2))))
    ours = [logits, *(endpoints[key] for key in sorted(endpoints) if key.startswith("aux"))]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(a, b, TOLERANCE_HEAD, f"{name} in training, output {i}")
    if "batch_stats" not in variables:
        return
    state = peer.state_dict()
    for (*path, leaf), value in flax.traverse_util.flatten_dict(new["batch_stats"]).items():
        key = rename("/".join(path))
        expected = state[f"{key}.running_{leaf}"].numpy()
        if leaf == "var":  # torch keeps the unbiased variance
            old = np.asarray(flax.traverse_util.flatten_dict(variables["batch_stats"])[*path, leaf])
            rate = 1 - dict(peer.named_modules())[key].momentum
            expected = rate * old + (expected - rate * old) * (counts[key] - 1) / counts[key]
        close(value, expected, TOLERANCE_64, f"{name}: {leaf} of {key} after a step")


# Keras


def randomize_keras(peer, residual=None, seed=0):
    """As ``randomize_torch``."""
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


def zero_biases(peer):
    """Sets the biases of convolutions to zero; returns their layers and names."""
    convs = [layer for layer in peer.layers if layer.__class__.__name__ == "Conv2D" and layer.use_bias]
    for layer in convs:
        layer.bias.assign(np.zeros(layer.bias.shape))
    return {(layer.name, layer.bias.name) for layer in convs}


def from_keras(model, shape, peer, rename, absent=None, without=()):
    """Our variables with the peer's weights; returns also which of ours each of the peer's fills.

    ``rename``: path → layer, or (layer, weight) where Keras joins two of our layers. ``absent``: leaf → value that the
    peer does not have, such as a scale of one.
    """
    weights = {(layer.name, w.name): np.asarray(w.value) for layer in peer.layers for w in layer.weights}
    left, where = set(weights) - set(without), {}
    names = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
    norms = {layer.name for layer in peer.layers if layer.__class__.__name__ == "BatchNormalization"}

    def find(path, leaf, size):
        layer = rename(path)
        key = layer if isinstance(layer, tuple) and leaf == "kernel" else None
        if key is None:
            layer = layer[0] if isinstance(layer, tuple) else layer
            key = (layer, names.get(leaf, "beta" if leaf == "bias" and layer in norms else leaf))
        if key not in weights and absent and leaf in absent:
            return np.full(size, absent[leaf], np.float32)
        left.remove(key)
        where[path, leaf] = key
        value = weights[key]
        return value.reshape(size) if leaf == "kernel" and value.size == np.prod(size) else value

    return _filled(model, shape, find, lambda: left), where


def check_keras(
    name,
    make_peer,
    rename,
    sizes,
    *,
    train_size=64,
    batch=4,
    residual=None,
    absent=None,
    drop_bias=False,
    **fields,
):
    """As ``check_torch``; ``make_peer(shape)`` gives the Keras model with logits.
    ``drop_bias``: the peer's convolutions before BatchNorm have a bias, which is set to zero and not ours.
    """
    model = models.create(name, **fields)

    def run(size, train):
        """Ours and theirs: (logits, new statistics)."""
        shape = (*((size, size) if isinstance(size, int) else size), 3)
        peer = randomize_keras(make_peer(shape), residual)
        variables, where = from_keras(model, shape, peer, rename, absent, zero_biases(peer) if drop_bias else ())
        x = images(shape, batch if train else 2).astype(np.float64 if train else np.float32)
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        jit = functools.partial(jax.jit, compiler_options=FAST)
        (logits, _), new = jit(apply)(variables, x, rngs={"dropout": jax.random.key(0)})
        call = jit(functools.partial(peer.stateless_call, training=train))
        trainable, fixed = ([v.value for v in vs] for vs in (peer.trainable_variables, peer.non_trainable_variables))
        theirs, after = call(trainable, fixed, x)
        owner = {id(w): (layer.name, w.name) for layer in peer.layers for w in layer.weights}
        after = {owner.get(id(v)): v_new for v, v_new in zip(peer.non_trainable_variables, after, strict=True)}
        ours = flax.traverse_util.flatten_dict(new.get("batch_stats", {}))
        ours = {where["/".join(path), leaf]: value for (*path, leaf), value in ours.items()}
        return (logits, ours), (theirs, after)

    for size in sizes:
        (logits, _), (theirs, _) = run(size, train=False)
        close(logits, theirs, what=f"{name} at {size}")
    with jax.enable_x64(True), float64_keras():
        (logits, ours), (theirs, after) = run(train_size, train=True)
    close(logits, theirs, TOLERANCE_HEAD, f"{name} in training")
    for key, value in ours.items():
        close(value, after[key], TOLERANCE_64, f"{name}: {key} after a step")


@contextlib.contextmanager
def float64_keras():
    """Keras models made and called within are float64, BatchNorm's sums included, which are float32 otherwise."""
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
