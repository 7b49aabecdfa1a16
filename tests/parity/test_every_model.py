"""Every architecture of ``models.names()`` is computed: a gradient step, and inference image by image.

It takes minutes, so it is not among the quick tests, which cover everything that needs no computation.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from cnnjax import models
from cnnjax.tasks import classify

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": KEY}
# Deeper variants have the units of shallower ones.
DEEPER = re.compile(r"resnet(34|101|152)(_v1|_v2)?|seresnet(101|152)|vgg19")
SIZES = (32, 48, 64, 80, 96, 128)  # pixels; each model takes the smallest of these that it admits
jit = functools.partial(jax.jit, compiler_options=peers.FAST)


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


@pytest.fixture(scope="module", params=[name for name in models.names() if not DEEPER.fullmatch(name)])
def initialized(request):
    """Model, variables and images of a small size; the tests of one model follow each other, then its memory is freed.

    NumPy draws the variables: compiling the initialization of a deep model takes as long as its gradient.
    """
    model = models.create(request.param)
    x = images(small_shape(model), 4)
    yield model, peers.drawn(model, x.shape[1:]), x
    jax.clear_caches()


def test_a_gradient_step_reaches_every_parameter_and_lowers_the_loss(initialized):
    """Computed in float64: in deep networks with random weights rounding to float32 moves the loss more than a step."""
    model, variables, x = initialized
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        params, state = wide["params"], {key: value for key, value in wide.items() if key != "params"}
        compute = classify.task(model, classify.unit, [str(i) for i in range(model.num_classes)]).loss_fn
        batch = {"image": np.asarray(x, np.float64), "label": np.arange(len(x)) % model.num_classes}

        def loss(params):
            return compute({"params": params, **state}, batch, jax.random.key(0))[0]

        @jit
        def step(params):
            """Loss, gradient, and parameters after a step that lowers the loss by a thousandth to first order."""
            before, gradient = jax.value_and_grad(loss)(params)
            learning_rate = 0.001 * before / sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient))
            return before, gradient, jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)

        before, gradient, params = step(params)
        after, _, _ = step(params)
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradient) if not g.any()]
    assert not dead
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert after < before


def test_each_image_for_itself(initialized):
    model, variables, x = initialized
    apply = jit(functools.partial(model.apply, train=False))
    logits, _ = apply(variables, x)
    np.testing.assert_array_equal(logits, apply(variables, x)[0])
    largest = float(jnp.abs(logits).max())
    assert largest > 0
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-4 * largest
    swapped, _ = apply(variables, x[::-1])
    np.testing.assert_allclose(swapped[::-1], logits, rtol=1e-5, atol=1e-5 * largest)
