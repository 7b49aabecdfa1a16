"""ops.wordtree: the paper's probabilities by hand, losses, gradients, predictions at the depth that is certain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data.formats import trees
from cnnjax.ops import wordtree

TREE = trees.from_ways([("animal", "dog", "husky"), ("animal", "dog", "pug"), ("animal", "cat"), ("car",)])
# Probabilities among siblings: animal 3/4, car 1/4; dog 2/3, cat 1/3; husky 4/5, pug 1/5.
GIVEN = {"animal": 3 / 4, "dog": 2 / 3, "husky": 4 / 5, "pug": 1 / 5, "cat": 1 / 3, "car": 1 / 4}
LOGITS = np.log([GIVEN[name] for name in TREE.names]).astype(np.float32)
PROBABILITY = np.exp(wordtree.log_probability(TREE.parents, LOGITS))


def test_a_tree_of_ways():
    assert TREE.names == ("animal", "dog", "husky", "pug", "cat", "car")
    assert TREE.parents == (-1, 0, 1, 1, 0, -1)
    np.testing.assert_array_equal(wordtree.ancestors(TREE.parents)[2], [2, 1, 0])
    np.testing.assert_array_equal(wordtree.ancestors(TREE.parents)[5], [5, -1, -1])


def test_probabilities_by_hand():
    shift = np.array([5.0, -2.0, 1.0, 1.0, -2.0, 5.0], np.float32)  # the same for all siblings
    conditional = np.exp(wordtree.log_conditional(TREE.parents, LOGITS + shift))
    np.testing.assert_allclose(conditional, [GIVEN[name] for name in TREE.names], rtol=1e-5)
    expected = [3 / 4, 1 / 2, 2 / 5, 1 / 10, 1 / 4, 1 / 4]
    np.testing.assert_allclose(np.exp(wordtree.log_probability(TREE.parents, LOGITS)), expected, rtol=1e-5)
    leaves = [2, 3, 4, 5]
    random = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32) * 5
    np.testing.assert_allclose(np.exp(wordtree.log_probability(TREE.parents, random))[:, leaves].sum(1), 1, rtol=1e-5)


def test_a_tree_of_one_level_is_a_softmax():
    flat = trees.from_ways([("a",), ("b",), ("c",)])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(wordtree.log_probability(flat.parents, x), jax.nn.log_softmax(x), rtol=1e-5, atol=1e-6)


def test_the_loss_stops_at_the_label():
    assert wordtree.loss(TREE.parents, LOGITS, 1) == pytest.approx(-np.log(1 / 2), rel=1e-5)
    assert wordtree.loss(TREE.parents, LOGITS, 2) == pytest.approx(-np.log(2 / 5), rel=1e-5)
    gradient = jax.grad(lambda x: wordtree.loss(TREE.parents, x, 1))(jnp.asarray(LOGITS))
    # A dog teaches nothing about breeds; elsewhere probability among siblings minus truth.
    np.testing.assert_allclose(gradient, [-1 / 4, -1 / 3, 0, 0, 1 / 3, 1 / 4], atol=1e-6)
    batch = wordtree.loss(TREE.parents, np.stack([LOGITS, LOGITS]), np.array([4, 5]))
    np.testing.assert_allclose(batch, [np.log(4), np.log(4)], rtol=1e-5)
    extreme = jax.grad(lambda x: wordtree.loss(TREE.parents, x, 2))(jnp.array([1e4, -1e4, 0, 1e4, 1e4, 0]))
    assert np.isfinite(extreme).all()


@pytest.mark.parametrize(
    ("threshold", "name", "probability"),
    [(0.8, None, 1), (0.6, "animal", 0.75), (0.45, "dog", 0.5), (0.3, "husky", 0.4)],
)
def test_predictions_go_as_deep_as_they_are_certain(threshold, name, probability):
    node, certain = jax.jit(lambda x: wordtree.predict(TREE.parents, x, threshold))(PROBABILITY[None])
    assert node.tolist() == [wordtree.ROOT if name is None else TREE.names.index(name)]
    np.testing.assert_allclose(certain, [probability], rtol=1e-5)


def test_parents_come_first():
    with pytest.raises(ValueError, match="the parent of node 0 is 1"):
        wordtree.ancestors((1, -1))
