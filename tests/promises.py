"""Promises of every model, for the tests of the families: parameter counts, recomputation, image sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import FAST, drawn

from cnnjax import models

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def abstract(model, shape):
    """Variables for images ``shape`` as shapes, without computing."""
    return jax.eval_shape(model.init, KEYS, jax.ShapeDtypeStruct(shape, np.float32))


def counts(name, **fields):
    """(parameters, BatchNorm statistics) of a model for its image shape."""
    model = models.create(name, **fields)
    variables = abstract(model, (1, *model.image_shape))
    return tuple(sum(x.size for x in jax.tree.leaves(variables.get(key))) for key in ("params", "batch_stats"))


def check_remat(name, size):
    """Checks that ``remat`` changes neither the tree of parameters nor a step's loss, statistics and gradient.

    Computed in float64: random deep networks enlarge float32's rounding, which differs between two programs.
    """
    with jax.enable_x64(True):
        _check_remat(name, size)


def _check_remat(name, size):
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    plain, recomputing = (models.create(name, num_classes=10, remat=remat) for remat in (False, True))
    trees = [jax.tree.map(lambda x: x.shape, abstract(model, images.shape)) for model in (plain, recomputing)]
    assert trees[0] == trees[1]
    images = images.astype(np.float64)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), drawn(plain, images.shape[1:]))

    def step(model):
        def loss(params):
            apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs=KEYS)
            (logits, _), new = apply({**variables, "params": params}, images)
            return jnp.square(logits).mean(), new

        blocks = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"])).count("= remat2[")
        assert (blocks > 0) == model.remat
        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)(variables["params"])

    (value, grads), (again, recomputed) = step(plain), step(recomputing)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    assert largest > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * largest), grads, recomputed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), value, again)


def check_sizes(name, smallest, **fields):
    """Checks that ``smallest`` pixels are accepted, also with one channel; with one less a ValueError names them."""
    model = models.create(name, **fields)
    for shape in ((1, smallest, smallest, 3), (1, smallest, smallest + 6, 1)):
        variables = abstract(model, shape)
        logits, endpoints = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, np.float32))
        assert logits.shape == (1, model.num_classes)
        assert all(0 not in x.shape for x in endpoints.values())
    for shape in ((1, smallest - 1, 64, 3), (1, 64, smallest - 1, 3), (64, 64, 3)):
        with pytest.raises(ValueError, match=rf"at least {smallest} by {smallest} pixels, got shape \({shape[0]}, "):
            abstract(model, shape)
