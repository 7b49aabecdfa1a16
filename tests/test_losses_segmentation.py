"""Losses of pixels: values by hand, ignored pixels, class weights, the focal loss, Dice, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import losses

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
LABELS = np.array([[0, 1, 2, 3], [4, 255, 0, 255], [1, 1, 2, 2]], np.uint8)
COUNTED = LABELS != 255


def cross_entropies(logits=LOGITS):
    return optax.softmax_cross_entropy_with_integer_labels(logits[COUNTED], LABELS[COUNTED].astype(int))


def test_ignored_pixels_do_not_count():
    found = losses.pixel_cross_entropy(LOGITS, LABELS)
    assert found.weight == 10
    assert found.total == pytest.approx(float(cross_entropies().sum()), rel=1e-6)
    other = LOGITS.copy()
    other[~COUNTED] = 100
    assert losses.pixel_cross_entropy(other, LABELS) == found
    gradient = jax.grad(lambda x: losses.pixel_cross_entropy(x, LABELS).total)(jnp.asarray(LOGITS))
    assert not gradient[~COUNTED].any()
    assert np.abs(gradient[COUNTED]).max() > 0
    nothing = losses.pixel_cross_entropy(LOGITS, np.full((3, 4), 255))
    assert (nothing.total, nothing.weight) == (0, 0)


def test_class_weights_weigh_losses_and_what_they_are_divided_by():
    weights = np.array([1, 2, 0, 0.5, 3], np.float32)
    found = losses.pixel_cross_entropy(LOGITS, LABELS, weights)
    own = weights[LABELS[COUNTED]]
    assert found.weight == own.sum()
    assert found.total == pytest.approx(float((cross_entropies() * own).sum()), rel=1e-6)


def test_the_focal_loss_by_hand():
    x = np.log(np.array([[[0.9, 0.1], [0.2, 0.8]]], np.float32))
    found = losses.pixel_cross_entropy(x, np.zeros((1, 2), int), focus=2.0)
    assert found.total == pytest.approx(-(0.1**2) * np.log(0.9) - 0.8**2 * np.log(0.2), rel=1e-5)
    assert losses.pixel_cross_entropy(LOGITS, LABELS, focus=0.0) == losses.pixel_cross_entropy(LOGITS, LABELS)
    sure = jax.grad(lambda x: losses.pixel_cross_entropy(x, LABELS, focus=2.0).total)(jnp.asarray(LOGITS) * 1000)
    assert np.isfinite(sure).all()


def test_dice_by_hand():
    logits = np.log(np.array([[[0.75, 0.25], [0.5, 0.5]]], np.float32))
    labels = np.array([[0, 1]])
    # Class 0: overlap 0.75, sizes 1.25 and 1; class 1: overlap 0.5, sizes 0.75 and 1.
    expected = 1 - ((2 * 0.75 + 1) / (1.25 + 1 + 1) + (2 * 0.5 + 1) / (0.75 + 1 + 1)) / 2
    assert losses.dice(logits, labels) == pytest.approx(expected, rel=1e-6)
    labels = np.array([[0, 255]])
    assert losses.dice(logits, labels) == pytest.approx(1 - (2 * 0.75 + 1) / (0.75 + 1 + 1), rel=1e-6)
    perfect = 40 * jax.nn.one_hot(LABELS.astype(int), 5)
    assert losses.dice(perfect, LABELS) == pytest.approx(0, abs=1e-6)
    assert losses.dice(LOGITS, np.full((3, 4), 255)) == 0


def test_float16_is_computed_in_float32():
    found = losses.pixel_cross_entropy(LOGITS.astype(np.float16), LABELS)
    assert found.total.dtype == np.float32
    assert found.total == pytest.approx(float(losses.pixel_cross_entropy(LOGITS, LABELS).total), rel=1e-3)
