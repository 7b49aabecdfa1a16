"""ops.matching: by hand, padding, vmap; tests/parity compares SSD's with torchvision's."""

import jax
import numpy as np
import pytest

from cnnjax.ops import boxes, matching

SSD = jax.jit(matching.match_ssd)
DEFAULT = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10], [50, 50, 60, 60], [22, 0, 32, 10]], np.float32)


def ssd(truths, mask=None):
    truths = np.array(truths, np.float32).reshape(-1, 4)
    match = SSD(DEFAULT, truths, np.ones(len(truths), bool) if mask is None else np.array(mask))
    return [int(i) if positive else None for i, positive in zip(*match, strict=True)]


def test_every_default_box_above_the_threshold_and_the_best_of_each_truth():
    # The first truth is the first box and overlaps the second by 0.8; the second only touches the fourth, by 0.04.
    assert ssd([[0, 0, 10, 10], [58, 58, 68, 60]]) == [0, 0, None, 1, None]


def test_a_truths_best_box_is_its_own_also_where_another_truth_overlaps_it_more():
    # The best box of both truths' is the first: the last truth has it, although the first overlaps it wholly.
    assert ssd([[0, 0, 10, 10], [0, 0, 10, 30]]) == [1, 0, None, None, None]


def test_the_threshold_is_enough():
    # Of the box 20…30 and 22…32, a truth of 20…30 × 0…5 overlaps the first by exactly a half.
    assert ssd([[20, 0, 30, 10], [20, 0, 30, 5]]) == [None, None, 1, None, 0]
    assert float(boxes.iou(DEFAULT[2:3], np.array([[20, 0, 30, 5]]))[0, 0]) == 0.5
    assert ssd([[0, 0, 10, 4]]) == [None, 0, None, None, None]  # 0.4 and 0.5


def test_padding_boxes_without_area_and_boxes_elsewhere_match_nothing():
    truth = [0, 0, 10, 10]
    assert ssd([truth, truth, [20, 0, 30, 10]], [False, True, False]) == [1, 1, None, None, None]
    assert ssd([[5, 5, 5, 5], [100, 100, 110, 110], [30, 10, 20, 0]]) == [None] * 5
    assert ssd([]) == [None] * 5


def test_no_index_is_out_of_range():
    match = SSD(DEFAULT, np.zeros((3, 4)), np.zeros(3, bool))
    assert match.truth.tolist() == [0] * 5
    assert not match.positive.any()


ANCHORS = [np.array([[8, 8], [16, 8]]), np.array([[40, 40]])]
STRIDES, SHAPE = (8, 16), (64, 96, 3)


@jax.jit
def yolo(truths, mask):
    return matching.match_yolo(truths, mask, ANCHORS, STRIDES, SHAPE)


def around(x, y, width, height):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def places(truths, mask=None):
    truths = np.array(truths, np.float32)
    match = yolo(truths, np.ones(len(truths), bool) if mask is None else np.array(mask))
    rows = zip(*(x.tolist() for x in match[:4]), match.valid.tolist(), strict=True)
    return [tuple(row[:4]) if row[4] else None for row in rows]


def test_the_best_anchor_of_all_scales_and_the_cell_of_the_center():
    truths = [around(20, 9, 7, 9), around(20, 9, 15, 8), around(90, 63.9, 60, 50), around(8, 16, 8, 8)]
    # scale, row, column, anchor; a center on a line belongs to the cell that begins there
    assert places(truths) == [(0, 1, 2, 0), (0, 1, 2, 1), (1, 3, 5, 0), (0, 2, 1, 0)]


def test_of_two_boxes_in_one_place_the_last_keeps_it():
    a, b = around(20, 9, 7, 9), around(21, 10, 8, 8)
    assert places([a, b]) == [None, (0, 1, 2, 0)]
    assert places([a, b, b], [True, True, False]) == [None, (0, 1, 2, 0), None]
    assert places([b, around(50, 50, 8, 8), a]) == [None, (0, 6, 6, 0), (0, 1, 2, 0)]


@pytest.mark.parametrize(
    "box",
    [around(-1, 9, 8, 8), around(9, 64, 8, 8), around(96, 9, 8, 8), around(9, 9, 0, 8), [9, 9, 5, 5], [np.nan] * 4],
)
def test_centers_outside_and_boxes_without_area_have_no_place(box):
    assert places([box, around(9, 9, 8, 8)]) == [None, (0, 1, 1, 0)]
    match = yolo(np.array([box], np.float32), np.array([True]))
    assert [int(x[0]) for x in match] == [0] * 5


def test_batches():
    rng = np.random.default_rng(0)
    truths = np.sort(rng.uniform(0, 64, (4, 7, 2, 2)), axis=2).reshape(4, 7, 4).astype(np.float32)
    mask = rng.random((4, 7)) < 0.7
    for match in (yolo, lambda truths, mask: SSD(DEFAULT, truths, mask)):
        batch = jax.vmap(match)(truths, mask)
        for i in range(4):
            jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), batch, match(truths[i], mask[i]))
