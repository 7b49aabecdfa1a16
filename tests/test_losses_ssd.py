"""losses.multibox_loss: by hand, hard negatives, no truths, gradients; tests/parity compares with torchvision's."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import losses
from cnnjax.ops import boxes
from cnnjax.tasks import detect

# Six default boxes, far from each other.
DEFAULT = np.array([[i * 100, 0, i * 100 + 10, 10] for i in range(6)], np.float32)
LOSS = jax.jit(losses.multibox_loss)


def outputs(classes, codes=None):
    return {"classes": classes, "boxes": np.zeros((6, 4), np.float32) if codes is None else codes}


def targets(*rows, count=4):
    """Boxes, labels and mask of rows (x_min, y_min, x_max, y_max, label), filled up to ``count``."""
    filled = np.array([*rows, *[(0, 0, 10, 10, 1)] * (count - len(rows))], np.float32).reshape(-1, 5)
    return filled[:, :4], filled[:, 4].astype(np.int32), np.arange(len(filled)) < len(rows)


def test_the_hardest_negatives_count_three_for_each_positive():
    classes = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    loss = LOSS(outputs(classes), DEFAULT, *targets((100, 0, 110, 10, 1)))
    assert loss.positives == 1
    negatives = np.sort(np.delete(-jax.nn.log_softmax(classes)[:, 0], 1))[::-1]
    want = -jax.nn.log_softmax(classes)[1, 2] + negatives[:3].sum()
    np.testing.assert_allclose(loss.parts["class"], want, rtol=1e-5)
    one = jax.jit(functools.partial(losses.multibox_loss, negatives=1))(
        outputs(classes), DEFAULT, *targets((100, 0, 110, 10, 1))
    )
    np.testing.assert_allclose(one.parts["class"], want - negatives[1:3].sum(), rtol=1e-5)


def test_what_is_to_be_ignored_is_neither_positive_nor_negative():
    classes = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)
    truths = targets((100, 0, 110, 10, 1), (200, 0, 210, 10, 0), (300, 0, 310, 10, 0))
    loss = LOSS(outputs(classes), DEFAULT, *truths, np.array([False, True, True, True]))
    assert loss.positives == 1
    entropy = -jax.nn.log_softmax(classes)
    want = entropy[1, 2] + entropy[jnp.array([0, 4, 5]), 0].sum()
    np.testing.assert_allclose(loss.parts["class"], want, rtol=1e-5)


def test_all_negatives_where_there_are_fewer():
    classes = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    loss = LOSS(outputs(classes), DEFAULT, *targets((100, 0, 110, 10, 1), (200, 0, 210, 10, 0)))
    assert loss.positives == 2
    entropy = -jax.nn.log_softmax(classes)
    want = entropy[1, 2] + entropy[2, 1] + entropy[jnp.array([0, 3, 4, 5]), 0].sum()
    np.testing.assert_allclose(loss.parts["class"], want, rtol=1e-5)


def test_smooth_l1_of_the_codes_of_positives():
    """Off by 0.5 and by 3: 0.5²/2 and 3 − 1/2; codes of other boxes do not count."""
    box = np.array([[102, 1, 118, 9]], np.float32)
    codes = np.full((6, 4), 50, np.float32)
    codes[1] = boxes.encode_ssd(box, DEFAULT[1:2])[0] + np.array([0.5, -3, 0, 0], np.float32)
    loss = LOSS(outputs(np.zeros((6, 3), np.float32), codes), DEFAULT, *targets((*box[0], 0)))
    np.testing.assert_allclose(loss.parts["box"], 0.125 + 2.5, rtol=1e-5)


@pytest.mark.parametrize("truths", [targets(), targets(count=0)], ids=["padding alone", "no rows"])
def test_an_image_without_boxes_has_no_loss_and_no_gradient(truths):
    rng = np.random.default_rng(2)
    given = outputs(*(rng.normal(size=(6, width)).astype(np.float32) for width in (3, 4)))

    def total(given):
        loss = losses.multibox_loss(given, DEFAULT, *truths)
        return loss.parts["class"] + loss.parts["box"], loss.positives

    (value, positives), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(given)
    assert (value, positives) == (0, 0)
    for each in gradient.values():
        np.testing.assert_array_equal(each, 0)


def test_gradients_are_finite_whatever_stands_in_the_padding():
    where, labels, mask = targets((100, 0, 110, 10, 1))
    where[1:] = [[5, 5, 5, 5], [0, 0, 1e9, 1e9], [10, 10, 0, 0]]

    def total(given):
        return sum(losses.multibox_loss(given, DEFAULT, where, labels, mask).parts.values())

    given = outputs(np.full((6, 3), 1e4, np.float32), np.full((6, 4), -1e4, np.float32))
    gradient = jax.jit(jax.grad(total))(given)
    assert all(np.isfinite(each).all() for each in gradient.values())
    assert gradient["boxes"].any(1).tolist() == [False, True, False, False, False, False]


def test_a_batch_by_vmap_and_half_precision():
    rng = np.random.default_rng(3)
    given = outputs(*(rng.normal(size=(2, 6, width)).astype(np.float32) for width in (3, 4)))
    rows = targets((100, 0, 110, 10, 1)), targets((0, 0, 10, 10, 0), (500, 0, 510, 9, 1))
    batch = jax.jit(jax.vmap(losses.multibox_loss, (0, None, 0, 0, 0)))(
        given, DEFAULT, *map(np.stack, zip(*rows, strict=True))
    )
    assert batch.positives.tolist() == [1, 2]
    for i in range(2):
        alone = LOSS({kind: each[i] for kind, each in given.items()}, DEFAULT, *rows[i])
        for part in ("class", "box"):
            np.testing.assert_allclose(batch.parts[part][i], alone.parts[part], rtol=1e-5)
    half = {kind: jnp.asarray(each[0], jnp.bfloat16) for kind, each in given.items()}
    assert LOSS(half, DEFAULT, *rows[0]).parts["class"].dtype == jnp.float32


def test_the_task_divides_by_the_positives_of_the_batch():
    rng = np.random.default_rng(5)
    given = outputs(*(rng.normal(size=(2, 6, width)).astype(np.float32) for width in (3, 4)))
    rows = targets((100, 0, 110, 10, 1)), targets((0, 0, 10, 10, 0), (500, 0, 510, 9, 1))
    batch = dict(zip(("boxes", "labels", "box_mask"), map(np.stack, zip(*rows, strict=True)), strict=True))
    model = SimpleNamespace(default_boxes=lambda image_shape: DEFAULT, variances=(0.1, 0.2))
    batch["image"] = np.zeros((2, 8, 8, 3), np.float32)
    parts = jax.jit(lambda given, batch: detect.LOSSES["ssd"](model, given, batch, {}))(given, batch)
    alone = [LOSS({kind: each[i] for kind, each in given.items()}, DEFAULT, *rows[i]).parts for i in range(2)]
    for part in ("class", "box"):
        np.testing.assert_allclose(parts[part].mean(), (alone[0][part] + alone[1][part]) / 3, rtol=1e-5)
