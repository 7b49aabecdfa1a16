"""YOLO's losses: values by hand, gradients, perfect predictions, ignored objects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import losses
from cnnjax.ops import boxes as ops
from cnnjax.ops import cells

GRIDS = (cells.Grid(((40.0, 40.0),), 2), cells.Grid(((8.0, 16.0), (16.0, 8.0)), 2))
SHAPE = (64, 64)
BOXES = np.array([[10, 10, 54, 50], [32, 4, 40, 20], [0, 0, 0, 0]], np.float32)
LABELS = np.array([1, 0, 0], np.int32)
MASK = np.array([True, True, False])


def maps(rng=None):
    shapes = [(2, 2, GRIDS[0].channels), (4, 4, GRIDS[1].channels)]
    return [np.zeros(s, np.float32) if rng is None else rng.normal(size=s).astype(np.float32) for s in shapes]


def loss(raw, grids=GRIDS, boxes=BOXES, labels=LABELS, mask=MASK, ignore=None, image_label=None, **options):
    compute = jax.jit(functools.partial(losses.yolo_loss, grids=grids, image_shape=SHAPE, **options))
    return compute(raw, boxes=boxes, labels=labels, box_mask=mask, ignore=ignore, image_label=image_label)


def test_zero_outputs_by_hand():
    box, objectness, classes = loss(maps())
    # The first object has the anchor of the coarse grid of 32 pixels; its center (32, 30) is in column 1, row 0.
    coarse = 2 * np.log(2) + (np.log(44 / 40) ** 2 + np.log(40 / 40) ** 2) / 2
    fine = 2 * np.log(2)  # its size is the anchor's
    expected = coarse * (2 - 44 * 40 / 64**2) + fine * (2 - 8 * 16 / 64**2)
    assert box == pytest.approx(expected, rel=1e-5)
    assert classes == pytest.approx(2 * 2 * np.log(2), rel=1e-6)
    assert objectness == pytest.approx((4 + 32) * np.log(2), rel=1e-6)  # no prediction overlaps by more than 0.7


def test_a_prediction_that_overlaps_an_object_is_not_blamed():
    raw = maps()
    raw[0][0, 0, :4] = 6, 5, np.log(44 / 40), 0  # the cell to the left predicts nearly the same box
    assert loss(raw).objectness == pytest.approx(35 * np.log(2), rel=1e-5)
    assert loss(raw, ignore_threshold=0.99).objectness == pytest.approx(36 * np.log(2), rel=1e-5)


def test_an_ignored_object_is_not_to_be_found_and_excuses_those_who_find_it():
    raw, ignore = maps(), np.array([True, False, False])
    raw[0][0, 1, :4] = -5, 3, np.log(44 / 40), 0
    found = loss(raw, ignore=ignore)
    assert found.classes == pytest.approx(2 * np.log(2), rel=1e-6)
    assert found.objectness == pytest.approx(35 * np.log(2), rel=1e-5)


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("box_loss", ["codes", "ciou"])
def test_perfect_outputs_lose_nothing_but_the_entropy_of_offsets(exclusive, box_loss):
    grids = tuple(grid._replace(exclusive=exclusive) for grid in GRIDS)
    raw = [np.full(x.shape, -30, np.float32) for x in maps()]
    raw[0][0, 1, :] = [-30, np.log(30 / 2), np.log(1.1), 0, 30, -30, 30]
    raw[1][0, 2, :7] = [-np.log(3), np.log(3), 0, 0, 30, 30, -30]
    boxes = BOXES.copy()
    boxes[0] = [32 - 22, 10, 32 + 22, 50]
    box, objectness, classes = loss(raw, grids, boxes, box_loss=box_loss)
    coarse, fine = 2 - 44 * 40 / 64**2, 2 - 8 * 16 / 64**2
    expected = 0 if box_loss == "ciou" else coarse * entropy(30 / 32) + fine * 2 * entropy(0.75)
    assert box == pytest.approx(expected, abs=1e-4)
    assert (objectness, classes) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))


def test_yolov2_weighs_objects_by_5_and_wants_their_iou():
    grids = tuple(grid._replace(exclusive=True) for grid in GRIDS)
    found = loss(maps(), grids)
    decoded, _ = cells.candidates([x[None] for x in maps()], grids, SHAPE)
    best = np.asarray(ops.iou(decoded[0], BOXES[:2]))
    at = best[1, 0], best[4 + (0 * 4 + 2) * 2, 1]
    expected = sum(5 * (0.5 - each) ** 2 / 2 for each in at) + 34 * 0.25 / 2
    assert found.objectness == pytest.approx(expected, rel=1e-5)
    assert found.classes == pytest.approx(2 * np.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("box_loss", "exclusive"),
    [("codes", True), ("ciou", False)]
    + [pytest.param(*x, marks=pytest.mark.exhaustive) for x in (("codes", False), ("ciou", True))],
)
def test_gradients_are_finite_and_padding_has_none(box_loss, exclusive):
    grids = tuple(grid._replace(exclusive=exclusive) for grid in GRIDS)
    raw = maps(np.random.default_rng(0))

    def total(raw, boxes=BOXES, mask=MASK):
        return sum(loss(raw, grids, boxes, mask=mask, box_loss=box_loss))

    grads = jax.grad(total)(raw)
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in grads)
    moved = np.concatenate([BOXES[:2], [[1, 2, 30, 40]]])  # the row of padding
    np.testing.assert_array_equal(total(raw), total(raw, moved))
    nothing = jax.grad(lambda raw: total(raw, mask=np.zeros(3, bool)))(raw)
    assert all(np.isfinite(x).all() for x in nothing)
    assert np.abs(nothing[0][..., :4]).max() == 0


def test_derivatives_of_codes_are_prediction_minus_truth():
    """The program adds these differences to its gradients, times 2 − w · h."""
    raw = maps(np.random.default_rng(1))
    grad = jax.grad(lambda raw: loss(raw).box)([jnp.asarray(x) for x in raw])
    code = raw[0][0, 1, :4]
    sigmoid = 1 / (1 + np.exp(-code[:2]))
    expected = [*(sigmoid - [0, 30 / 32]), *(code[2:] - [np.log(1.1), 0])]
    np.testing.assert_allclose(grad[0][0, 1, :4], np.array(expected) * (2 - 44 * 40 / 64**2), rtol=1e-4, atol=1e-6)


TREE = (-1, 0, 0)  # animal: dog, cat


def tree_grids(exclusive):
    return tuple(grid._replace(classes=3, parents=TREE, exclusive=exclusive) for grid in GRIDS)


def tree_maps():
    return [np.zeros((2, 2, 8), np.float32), np.zeros((4, 4, 16), np.float32)]


def test_classes_of_a_tree_lose_at_every_level_down_to_the_label():
    raw = tree_maps()
    raw[0][0, 1, 5:] = 7, np.log(3), 0  # the first object's prediction: animal 1, dog 3/4, cat 1/4
    found = loss(raw, tree_grids(exclusive=False), labels=np.array([2, 0, 0], np.int32))
    assert found.classes == pytest.approx(np.log(4), rel=1e-5)  # the second object is some animal, which is certain


@pytest.mark.parametrize("exclusive", [False, True])
def test_an_image_with_a_label_only_trains_the_surest_prediction(exclusive):
    raw, grids = tree_maps(), tree_grids(exclusive)
    raw[0][..., 4], raw[1][..., [4, 12]] = -3, -3
    raw[1][2, 3, 12:] = np.log(0.2 / 0.8), 0, np.log(2), 0  # objectness 0.2, dog 2/3
    of_dog = functools.partial(loss, grids=grids, boxes=0 * BOXES, mask=np.zeros(3, bool), image_label=jnp.int32(1))
    parts, gradient = of_dog(raw), jax.grad(lambda raw: sum(of_dog(raw)))(raw)
    assert parts.box == 0
    assert parts.classes == pytest.approx(np.log(3 / 2), rel=1e-5)
    divergence = 0.3 * np.log(0.3 / 0.2) + 0.7 * np.log(0.7 / 0.8)
    assert parts.objectness == pytest.approx(5 * 0.1**2 / 2 if exclusive else divergence, rel=1e-4)
    assert not gradient[0].any()
    np.testing.assert_array_equal(np.argwhere(np.asarray(gradient[1])), [[2, 3, 12], [2, 3, 14], [2, 3, 15]])
    np.testing.assert_allclose(gradient[1][2, 3, 14:], [2 / 3 - 1, 1 / 3], rtol=1e-5)
    raw[1][2, 3, 12] = 0  # above 0.3 nothing is asked of the objectness
    assert of_dog(raw).objectness == 0
    np.testing.assert_array_equal(loss(raw, grids, image_label=jnp.int32(-1)), loss(raw, grids))
