"""Random views and mosaics: every field stays on the paint, draws are pure functions, and rules are the papers'."""

from functools import partial

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import assert_box_on_the_mask, example, examples, rng

from cnnjax.data import transforms, views
from cnnjax.data.preparation import Geometry

CHOOSERS = {
    "whole": (),
    "jitter": (views.jitter(0.3),),
    "zoom_out": (views.zoom_out(3.0),),
    "iou_crop": (views.iou_crop(),),
    "ssd": (views.zoom_out(), views.iou_crop()),
}
PROPORTIONS = st.sampled_from(["squeeze", "letterbox"])


def boxed(boxes, height=100, width=100):
    """Example with boxes that are labelled by their rows; every third one is to be ignored."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes), dtype=np.int32)
    return {
        "image": np.zeros((height, width, 3), np.uint8),
        "boxes": boxes,
        "labels": labels,
        "ignore": labels % 3 == 0,
    }


def assert_on_the_paint(new):
    """Checks the box, if it is kept, against both masks."""
    assert new["segmentation"].shape == new["image"].shape[:2]
    if new["box_mask"][0]:
        assert_box_on_the_mask(new["boxes"][0], new["instance_masks"][0])
        assert_box_on_the_mask(new["boxes"][0], new["segmentation"] == 1)


def middle(image, box):
    """Value in the middle of a box; None where it is so small that resampling blurs it."""
    left, top, right, bottom = box
    return None if min(right - left, bottom - top) < 4 else image[int((top + bottom) / 2), int((left + right) / 2), 0]


# ---- views ----


@settings(max_examples=80, deadline=None)
@given(examples(), st.sampled_from(list(CHOOSERS)), PROPORTIONS, st.integers(40, 120), st.integers(0, 2**32 - 1))
def test_fields_of_a_view_move_together(before, name, proportions, size, seed):
    view = views.random_view(size, *CHOOSERS[name], proportions=proportions, centers=name == "ssd")
    new = view(rng(seed), before)
    assert new["image"].shape == (size, size, 3)
    assert_on_the_paint(new)
    chex.assert_trees_all_equal(view(rng(seed), before), new)
    if new["box_mask"][0]:
        assert middle(new["image"], new["boxes"][0]) in (None, 255)


def test_what_is_outside_of_the_image_is_fill():
    before = example((0, 0, 160, 120))
    for window, inside in (
        ((-160, -120, 160, 120), (slice(50, 100), slice(50, 100))),
        ((80, 60, 240, 180), (slice(0, 50), slice(0, 50))),
        ((200, 0, 300, 100), (slice(0, 0), slice(0, 0))),
        ((-300, 130, -100, 330), (slice(0, 0), slice(0, 0))),
    ):
        new = transforms.apply(before, views.through(window, 120, 160, (100, 100)), 77)
        want = np.full((100, 100), 77)
        want[inside] = 255
        np.testing.assert_array_equal(new["image"][..., 0], want)
        np.testing.assert_array_equal(new["segmentation"] == 255, want == 77)
        assert new["box_mask"].tolist() == [want.max() == 255]


def test_the_whole_window_is_the_whole_image_and_proportions_are_evaluation_s():
    assert views.through((0, 0, 160, 120), 120, 160, (50, 60)) == Geometry((50, 60), (50, 60))
    before = example()
    for proportions, same in (("squeeze", transforms.squeeze(64)), ("letterbox", transforms.letterbox(64))):
        new, want = views.random_view(64, proportions=proportions, flip=0.0)(rng(), before), same(before)
        chex.assert_trees_all_equal(new, want)
    mirrored = views.random_view(64, flip=1.0)(rng(), before)
    np.testing.assert_array_equal(mirrored["image"], transforms.squeeze(64)(before)["image"][:, ::-1])


def windows(choose, boxes=(), window=(0.0, 0.0, 200.0, 100.0), count=400):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return np.array([choose(rng(seed), window, boxes) for seed in range(count)])


def test_jitter_moves_each_side_by_its_share():
    found = windows(views.jitter(0.2)) - (0, 0, 200, 100)
    for side, limit in enumerate((40, 20, 40, 20)):
        assert 0.95 * limit < found[:, side].max() <= limit
        assert -limit <= found[:, side].min() < -0.95 * limit
        assert abs(found[:, side].mean()) < 0.15 * limit


def test_zooming_out_keeps_all_of_the_window_at_a_random_place():
    found = windows(views.zoom_out(4.0, 0.5))
    same = (found == (0, 0, 200, 100)).all(1)
    assert 160 < same.sum() < 240
    wide = found[~same]
    sides = wide[:, 2:] - wide[:, :2]
    assert (wide[:, :2] <= 0).all()
    assert (wide[:, 2:] >= (200 - 1e-9, 100 - 1e-9)).all()
    np.testing.assert_allclose(sides[:, 0], 2 * sides[:, 1])
    assert 1 < sides[:, 1].min() / 100 < 1.1
    assert 3.9 < sides[:, 1].max() / 100 <= 4
    place = -wide[:, 0] / (sides[:, 0] - 200)
    assert 0.4 < place.mean() < 0.6


BOXES = [(20, 20, 60, 60), (150, 40, 190, 95), (5, 5, 12, 9)]


@pytest.mark.parametrize("least", [0.0, 0.1, 0.5, 0.9])
def test_a_crop_overlaps_a_box_whose_center_it_has(least):
    boxes = np.array(BOXES, float)
    found = windows(views.iou_crop((least,), scale=(0.2, 1.0)), BOXES, count=60)
    whole = (found == (0, 0, 200, 100)).all(1)
    assert whole.sum() < 60 or least == 0.9
    for window in found[~whole]:
        assert (window >= 0).all()
        assert (window <= (200, 100, 200, 100)).all()
        assert 0.5 <= (window[2] - window[0]) / (window[3] - window[1]) <= 2
        inside = views.centered(boxes, window)
        low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
        common = (high - low).clip(0).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (window[2:] - window[:2]).prod() - common
        assert (common / union)[inside].max() >= least


def test_a_crop_leaves_an_image_without_boxes_and_sometimes_any():
    assert (windows(views.iou_crop()) == (0, 0, 200, 100)).all()
    assert (windows(views.iou_crop(), [(250, 0, 300, 50)]) == (0, 0, 200, 100)).all()  # beside the window
    assert (windows(views.iou_crop((1.0,)), BOXES) == (0, 0, 200, 100)).all()
    whole = (windows(views.iou_crop(), BOXES) == (0, 0, 200, 100)).all(1).mean()
    assert 0.1 < whole < 0.5  # 1 of 7 overlaps; and those that no part reaches are drawn again


def test_centers_decide_by_ssd_s_rule_and_the_visible_area_else():
    before = boxed([(10, 10, 30, 30), (40, 0, 62, 100), (48, 10, 90, 20), (0, 0, 100, 100)])
    view = partial(views.random_view, 50, lambda *_: (0.0, 0.0, 50.0, 50.0), flip=0.0)
    new = view(centers=True)(rng(), before)
    assert new["box_mask"].tolist() == [True, False, False, False]  # the last one's center is on the border
    new = view(min_visible=0.2)(rng(), before)
    assert new["box_mask"].tolist() == [True, True, False, True]
    np.testing.assert_array_equal(new["boxes"][[0, 1, 3]], [[10, 10, 30, 30], [40, 0, 50, 50], [0, 0, 50, 50]])
    masked = view(centers=True)(rng(), {**before, "box_mask": np.array([False, True, True, True])})
    assert not masked["box_mask"].any()


# ---- mosaic ----


def numbered(before, number):
    """Example with a paint, a mask and labels of its own."""
    paint = before["segmentation"] == 1
    return {
        "image": np.where(paint[..., None], np.uint8(50 * number), np.uint8(10)).repeat(3, 2),
        "boxes": before["boxes"],
        "labels": np.array([number], np.int32),
        "ignore": np.array([number % 2 == 0]),
        "segmentation": np.where(paint, np.uint8(number), np.uint8(0)),
        "instance_masks": before["instance_masks"],
    }


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[examples()] * 4),
    st.sampled_from(list(CHOOSERS)),
    PROPORTIONS,
    st.integers(24, 130),
    st.integers(0, 2**32 - 1),
)
def test_fields_of_a_mosaic_stay_on_the_paint_and_in_line(four, name, proportions, size, seed):
    four = [numbered(each, number) for number, each in enumerate(four, 1)]
    new = views.mosaic(size, rng(seed), four, *CHOOSERS[name], proportions=proportions)
    assert (new["image"].shape, new["segmentation"].shape) == ((size, size, 3), (size, size))
    assert (new["boxes"].shape, new["boxes"].dtype, new["instance_masks"].shape) == (
        (4, 4),
        np.float32,
        (4, size, size),
    )
    assert (new["labels"].tolist(), new["ignore"].tolist()) == ([1, 2, 3, 4], [False, True, False, True])
    for row, number in enumerate(new["labels"]):
        if new["box_mask"][row]:
            box = new["boxes"][row]
            assert_box_on_the_mask(box, new["instance_masks"][row])
            assert_box_on_the_mask(box, new["segmentation"] == number)
            assert middle(new["image"], box) in (None, 50 * number)
        else:
            assert not new["boxes"][row].any()


def test_a_mosaic_is_four_quarters_around_a_random_point():
    four = [{"image": np.full((60, 90, 3), number, np.uint8), "name": number} for number in (1, 2, 3, 4)]
    points = []
    for seed in range(200):
        new = views.mosaic(100, rng(seed), four)
        image = new["image"][..., 0]
        column, row = np.argmax(image[0] == 2), np.argmax(image[:, 0] == 3)
        want = np.block([
            [np.full((row, column), 1), np.full((row, 100 - column), 2)],
            [np.full((100 - row, column), 3), np.full((100 - row, 100 - column), 4)],
        ])  # fmt: skip
        np.testing.assert_array_equal(image, want)
        assert new["name"] == 1
        points.append((row, column))
    assert (np.min(points, 0) >= 20).all()
    assert (np.max(points, 0) <= 80).all()
    assert (np.ptp(points, 0) > 55).all()
    again = views.mosaic(100, rng(199), four)
    np.testing.assert_array_equal(again["image"], new["image"])


def test_what_a_quarter_cuts_is_clipped_or_left_out():
    whole = boxed([(0, 0, 100, 100), (10, 10, 20, 20)])
    kept = np.zeros(2)
    for seed in range(50):
        new = views.mosaic(100, rng(seed), [whole] * 4, views.jitter(0.3), flip=0.0)
        assert (new["boxes"] >= 0).all()
        assert (new["boxes"] <= 100).all()
        assert new["box_mask"][::2].any()
        kept += new["box_mask"].reshape(4, 2).sum(0)
    assert 150 < kept[0] <= 200
    assert 50 < kept[1] < 190


def test_partners_are_others_while_there_are_enough():
    seen = set()
    for seed in range(300):
        index = seed % 6
        four = views.partners(rng(seed), index, 6)
        assert four[0] == index
        assert len(set(four)) == 4
        seen |= {(index, other) for other in four[1:]}
    assert len(seen) == 30
    for count in (1, 2, 3):
        assert set(views.partners(rng(1), 0, count)) <= set(range(count))
