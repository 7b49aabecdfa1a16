"""LeNet-5 of 1998 against the numbers, the table and the equations of its paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import losses, models
from cnnjax.models import lenet
from cnnjax.types import UserError

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)

# Table I as printed: row = channel of s2, column = feature of c3.
TABLE_I = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""
CONNECTED = np.array([[mark == "X" for mark in row.split()] for row in TABLE_I.strip().splitlines()])


@pytest.fixture(scope="module")
def variables():
    return jax.jit(models.create("lenet5").init)(KEY, X)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_sixty_thousand_parameters(variables):
    counts = {layer: count(params) for layer, params in variables["params"].items()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert count(variables) == 60_000


def test_modern_parameters():
    params = jax.eval_shape(models.create("lenet5_modern").init, KEY, X)["params"]
    counts = {layer: count(tree) for layer, tree in params.items()}
    assert counts == {"c1": 156, "c3": 2416, "c5": 48_120, "f6": 10_164, "head": 850}
    assert count(params) == 61_706


def test_sizes_of_the_feature_maps(variables):
    _, endpoints = jax.eval_shape(models.create("lenet5").apply, variables, X)
    assert {key: x.shape[1:] for key, x in endpoints.items()} == {
        "c1": (28, 28, 6),
        "s2": (14, 14, 6),
        "c3": (10, 10, 16),
        "s4": (5, 5, 16),
        "pooled": (16,),
        "c5": (120,),
        "f6": (84,),
    }


def test_c3_is_connected_as_table_i():
    """The derivative of each feature of c3 by each channel of s2 is zero exactly where the table is empty."""
    assert CONNECTED.shape == (6, 16)
    assert CONNECTED.sum() == 60
    layer = lenet.TableConv(lenet._TABLE_I)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 6)).astype(np.float32)
    params = layer.init(KEY, x)
    jacobian = jax.jacobian(lambda x: layer.apply(params, x)[0, 0, 0])(x)  # [16, 1, 5, 5, 6]
    np.testing.assert_array_equal((jacobian != 0).all((1, 2, 3)).T, CONNECTED)
    np.testing.assert_array_equal((jacobian != 0).any((1, 2, 3)).T, CONNECTED)


def test_c3_kernel_is_ordered_by_feature_then_channel():
    layer = lenet.TableConv(lenet._TABLE_I)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 6)).astype(np.float32)
    params = layer.init(KEY, x)["params"]
    bias = np.arange(16, dtype=np.float32)
    got = layer.apply({"params": {**params, "bias": bias}}, x)[0, 0, 0]
    want, at = bias.astype(np.float64), 0
    for out, source in itertools.product(range(16), range(6)):
        if CONNECTED[source, out]:
            want[out] += (x[0, :, :, source] * np.asarray(params["kernel"][:, :, at])).sum()
            at += 1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_weights_start_uniform_within_their_fan_in(variables):
    params = variables["params"]
    fan_ins = {"c1": 25, "c5": 400, "f6": 120}
    for layer, fan_in in fan_ins.items():
        largest = float(jnp.abs(params[layer]["kernel"]).max()) * fan_in / 2.4
        assert 0.9 < largest <= 1
    assert float(jnp.abs(params["s4"]["scale"]).max()) <= 2.4 / 4
    bounds = 2.4 / (25 * CONNECTED.sum(0)[CONNECTED.T.nonzero()[0]])  # of the feature to which each window belongs
    largest = np.abs(params["c3"]["kernel"]).max((0, 1)) / bounds
    assert (largest <= 1).all()
    assert (largest > 0.6).all()


def test_input_coding_and_padding(variables):
    """Background becomes −0.1, also around 28 pixels, and ink 1.175; a c1 that copies pixels shows them."""
    params = dict(variables["params"])
    kernel = np.zeros((5, 5, 1, 6), np.float32)
    kernel[0, 0, 0, 0] = 1  # feature 0: the top left pixel of the window
    params["c1"] = {"kernel": kernel, "bias": np.zeros(6, np.float32)}
    image = np.ones((1, 28, 28, 1), np.float32)
    _, endpoints = jax.jit(models.create("lenet5").apply)({"params": params}, image)
    want = np.full((28, 28), 1.7159 * np.tanh(1.175 * 2 / 3))
    want[:2] = want[:, :2] = 1.7159 * np.tanh(-0.1 * 2 / 3)
    np.testing.assert_allclose(endpoints["c1"][0, :, :, 0], want, rtol=1e-5)


def test_squash_is_one_at_one():
    np.testing.assert_allclose(lenet.squash(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)
    np.testing.assert_allclose(lenet.squash(jnp.array([100.0])), [1.7159])


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_28_pixels_are_32_with_a_margin(name):
    model = models.create(name)
    params = jax.jit(model.init)(KEY, X)
    wide = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, X)[0], apply(params, wide)[0], rtol=1e-6)


def test_codes_are_ten_distant_bitmaps():
    codes = lenet.RBF_CODES
    assert codes.shape == (10, 84)
    assert set(codes.ravel().tolist()) == {-1.0, 1.0}
    distances = [int((a != b).sum()) for a, b in itertools.combinations(codes, 2)]
    assert min(distances) >= 15


def test_rbf_by_hand():
    distances = lenet.rbf_distances(jnp.array([[0.5, -1.0]]), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(distances, [[0.25, 2.25 + 4.0]])
    own = lenet.rbf_distances(jnp.asarray(lenet.RBF_CODES), lenet.RBF_CODES)
    hamming = (lenet.RBF_CODES[:, None] != lenet.RBF_CODES).sum(-1)
    np.testing.assert_allclose(own, 4 * hamming)
    np.testing.assert_array_equal((-own).argmax(1), np.arange(10))
    with pytest.raises(AssertionError, match=r"rank 1 .*expected \{2, 4\}"):
        lenet.rbf_distances(jnp.zeros(84), lenet.RBF_CODES)


def test_logits_are_minus_the_distances_of_f6(variables):
    logits, endpoints = jax.jit(models.create("lenet5").apply)(variables, X)
    f6 = np.asarray(endpoints["f6"], np.float64)
    want = -((f6[:, None] - lenet.RBF_CODES) ** 2).sum(-1)
    np.testing.assert_allclose(logits, want, rtol=1e-5)


@pytest.mark.exhaustive
def test_learns_with_its_loss(variables):
    """Forty steps on three images with the paper's loss: each reaches the code of its label."""
    model, labels = models.create("lenet5"), jnp.array([3, 1, 7])

    def loss(params):
        logits, _ = model.apply({"params": params}, X, train=True)
        return losses.rbf_map_loss(logits, labels).mean()

    optimizer = optax.adam(0.005)

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    trained, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 40, step, c))((params, optimizer.init(params)))
    assert float(loss(trained)) < 0.2 * float(loss(params))
    np.testing.assert_array_equal(model.apply({"params": trained}, X)[0].argmax(1), labels)


def test_ten_classes_only():
    with pytest.raises(UserError, match="10 classes, the digits, got num_classes=100"):
        models.create("lenet5", num_classes=100)
    assert models.create("lenet5_modern", num_classes=26).num_classes == 26


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
@pytest.mark.parametrize("shape", [(1, 28, 28, 3), (1, 8, 8, 1), (1, 32, 28, 1), (28, 28, 1)])
def test_other_images_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"expected images \[n, 28, 28, 1\] or .*got shape \(\d+, "):
        jax.eval_shape(models.create(name).init, KEY, np.zeros(shape, np.float32))
