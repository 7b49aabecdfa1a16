"""Canvases composed of digits, and crops of them: boxes lie around the ink, each split is the same again."""

import numpy as np
import pytest

from cnnjax.data import canvases, catalog, crops
from cnnjax.data.sources import Arrays
from cnnjax.ops.sliding import Windows
from cnnjax.types import UserError

WINDOWS = Windows(32, 4, (1.0, 0.5))


@pytest.fixture(scope="module")
def pictures():
    return canvases.compose(catalog.digits().valid, 5, 40, seed=3, side=96)


def test_boxes_lie_around_the_ink_of_objects_and_strangers(pictures):
    image, boxes, mask = (pictures.fields[name] for name in ("image", "boxes", "box_mask"))
    strangers = pictures.fields["strangers"]
    assert image.shape == (40, 96, 96, 1)
    assert pictures.classes == tuple("01234")
    assert mask.any(1).all()
    assert 40 < mask.sum() < 40 * 5
    assert pictures.fields["labels"][mask].max() == 4
    for i in range(40):
        ink = np.zeros((96, 96), int)
        each = [*boxes[i][mask[i]], *(box for box in strangers[i] if box[2])]
        for left, top, right, bottom in np.array(each, int):
            ink[top:bottom, left:right] += 1
            inside = image[i, top:bottom, left:right, 0] >= canvases.INK
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()
            assert 10 <= bottom - top <= 42
        assert ink.max() == 1
        assert (image[i, ..., 0][ink == 0] < canvases.INK).all()
    assert not boxes[~mask].any()


def test_the_same_seed_gives_the_same(pictures):
    again = canvases.compose(catalog.digits().valid, 5, 40, seed=3, side=96)
    other = canvases.compose(catalog.digits().valid, 5, 40, seed=4, side=96)
    for name, values in pictures.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert (values != other.fields[name]).any()
    first, second = (crops.cut(pictures, WINDOWS, seed=0) for _ in range(2))
    for name, values in first.fields.items():
        np.testing.assert_array_equal(values, second.fields[name])


def test_classes_that_are_not_there_are_named():
    source = Arrays({"image": np.zeros((3, 8, 8, 1), np.uint8), "label": np.full(3, 1, np.int32)}, ("a", "b"))
    with pytest.raises(UserError, match=r"images of the first 1 classes and of others, got \('a', 'b'\)"):
        canvases.compose(source, 1, 2, seed=0)
    with pytest.raises(UserError, match="a canvas of 40 pixels has no room for images of up to 42"):
        canvases.compose(source, 2, 2, seed=0, side=40)


def test_crops_with_an_object_have_it_in_the_middle(pictures):
    found = crops.cut(pictures, WINDOWS, seed=0)
    image, boxes, mask = (found.fields[name] for name in ("image", "boxes", "box_mask"))
    assert image.shape[1:] == (32, 32, 1)
    assert image.dtype == np.uint8
    assert boxes.shape[1:] == (1, 4)
    assert 0.1 < mask.mean() < 0.5
    present = boxes[mask[:, 0], 0]
    np.testing.assert_array_less(np.abs((present[:, :2] + present[:, 2:]) / 2 - 16), 4 * crops.NEAR + 0.51)
    longest = (present[:, 2:] - present[:, :2]).max(-1) / 32
    assert crops.FITS[0] <= longest.min() <= longest.max() <= crops.FITS[1]
    for pixels, (left, top, right, bottom) in zip(
        image[mask[:, 0], ..., 0], np.round(present).astype(int), strict=True
    ):
        outside = pixels[top : bottom + 1, left : right + 1] >= canvases.INK
        assert outside.any()
    assert not boxes[~mask[:, 0]].any()
    assert not found.fields["labels"][~mask[:, 0]].any()


def test_crops_without_an_object_show_strangers_and_parts_too(pictures):
    found = crops.cut(pictures, WINDOWS, seed=0)
    middle = found.fields["image"][~found.fields["box_mask"][:, 0], 10:22, 10:22, 0]
    assert 0.2 < (middle >= 2 * canvases.INK).any((1, 2)).mean() < 0.95
