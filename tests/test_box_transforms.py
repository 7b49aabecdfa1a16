"""Boxes move with the pixels: a painted rectangle is measured after every transform, on the host and on the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import augment, box_augment, box_host, host
from cnnjax.types import UserError

BOX = (30, 40, 90, 70)  # of the picture of 160×120


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(box=BOX, height=120, width=160, channels=3):
    """uint8 zeros with 255 in the box."""
    image = np.zeros((height, width, channels), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    return image, np.array([box], np.float32)


def extent(image):
    """(left, top, right, bottom) of what is painted, to fractions of a pixel: mass and centre of its profiles."""
    paint = np.asarray(image, np.float64)[..., 0] / np.max(image)
    sides = []
    for profile in (paint.max(0), paint.max(1)):
        size = profile.sum()
        centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / size
        sides.append((centre - size / 2, centre + size / 2))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


# ---- on the host ----

HOST = {
    "squeeze": partial(box_host.squeeze, size=100),
    "resize_and_crop": partial(box_host.resize_and_crop, resize=100, size=80),
    "resize_and_crop, odd": partial(box_host.resize_and_crop, resize=101, size=64),
    "center_crop": partial(box_host.center_crop, size=90),
    "center_crop, larger": partial(box_host.center_crop, size=250),
    "crop": partial(box_host.crop, window=(20, 30, 120, 110), height=64, width=64),
    "crop into the box": partial(box_host.crop, window=(50, 50, 120, 110), height=120, width=70),
    "letterbox": partial(box_host.letterbox, size=90, fill=0),
    "letterbox, larger": partial(box_host.letterbox, size=333, fill=0),
    "flip": box_host.flip_left_right,
}


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("upright", [False, True])
def test_on_the_host_boxes_stay_on_the_paint(name, upright):
    image, boxes = picture((40, 60, 70, 100), 160, 120) if upright else picture()
    new, moved, keep = HOST[name](image, boxes)
    assert (new.dtype, moved.dtype, moved.shape, keep.tolist()) == (np.uint8, np.float32, (1, 4), [True])
    np.testing.assert_allclose(moved[0], extent(new), atol=0.15)


def test_random_crops_keep_boxes_on_the_paint():
    image, boxes = picture()
    kept = 0
    for seed in range(60):
        new, moved, keep = box_host.random_resized_crop(rng(seed), image, boxes, 96, share=(0.2, 1.0))
        assert new.shape == (96, 96, 3)
        if keep[0]:
            np.testing.assert_allclose(moved[0], extent(new), atol=0.6)  # the resampling blurs an edge near the border
            kept += 1
    assert 30 < kept < 60


def test_flips_and_whole_windows_are_exact():
    image, boxes = picture()
    np.testing.assert_array_equal(box_host.flip_left_right(image, boxes)[1], [[70, 40, 130, 70]])
    np.testing.assert_array_equal(box_host.flip_left_right(image, boxes)[0], np.fliplr(image))
    new, moved, _ = box_host.crop(image, boxes, (20, 30, 84, 94), 64, 64)
    np.testing.assert_array_equal(moved, [[10, 10, 64, 40]])
    np.testing.assert_array_equal(new, image[30:94, 20:84])
    flips = [box_host.random_flip_left_right(rng(seed), image, boxes)[1][0, 0] for seed in range(40)]
    assert set(flips) == {30, 70}
    assert 8 < flips.count(30) < 32


@pytest.mark.parametrize("shape", [(120, 160), (160, 120), (97, 131), (200, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_transforms_without_boxes(shape, channels):
    image, none = rng().integers(0, 256, (*shape, channels), np.uint8), np.zeros((0, 4), np.float32)
    for name, *numbers in (("squeeze", 50), ("center_crop", 60), ("resize_and_crop", 70, 61)):
        new, boxes, keep = getattr(box_host, name)(image, none, *numbers)
        np.testing.assert_array_equal(new, getattr(host, name)(*numbers)(image), name)
        assert (boxes.shape, keep.shape) == ((0, 4), (0,))


def test_letterbox_leaves_the_fill_and_the_proportions():
    image, _ = picture()
    new, _, _ = box_host.letterbox(np.full_like(image, 9), np.zeros((0, 4)), 80, fill=200)
    assert (new[:10] == 200).all()
    assert (new[10:70] == 9).all()
    assert (new[70:] == 200).all()


def test_boxes_are_kept_by_what_is_left_of_them():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 40, 40], [0, 0, 12, 100], [60, 60, 90, 90], [5, 5, 5, 9], [0, 0, 10, 10]], np.float32)
    new, moved, keep = box_host.crop(image, boxes, (10, 0, 60, 100), 100, 50, min_visible=0.25)
    np.testing.assert_array_equal(moved[:2], [[0, 0, 30, 40], [0, 0, 2, 100]])
    assert keep.tolist() == [True, False, False, False, False]
    _, _, keep = box_host.crop(image, boxes, (10, 0, 60, 100), 100, 50, min_visible=0.1)
    assert keep.tolist() == [True, True, False, False, False]
    assert new.shape == (100, 50, 3)
    assert ((moved >= 0) & (moved <= [50, 100, 50, 100])).all()


def test_windows_are_inside_and_have_the_share_and_ratio():
    shares, ratios = [], []
    for seed in range(200):
        left, top, right, bottom = box_host.random_window(rng(seed), 200, 300, (0.2, 0.5), (0.5, 2.0))
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        shares.append((right - left) * (bottom - top) / 60000)
        ratios.append((right - left) / (bottom - top))
    assert 0.19 < min(shares) < 0.23
    assert 0.47 < max(shares) < 0.51
    assert 0.49 < min(ratios) < 0.6
    assert 1.6 < max(ratios) < 2.03
    assert box_host.random_window(rng(), 10, 1000, (1.0, 1.0)) == (493, 0, 506, 10)  # none fits: the nearest ratio
    assert box_host.random_window(rng(), 1, 1) == (0, 0, 1, 1)


def test_what_is_impossible_is_refused():
    image, boxes = picture()
    with pytest.raises(UserError, match="no square of 90 pixels"):
        box_host.resize_and_crop(image, boxes, 80, 90)
    for window in ((0, 0, 161, 100), (-1, 0, 5, 5), (5, 5, 5, 9)):
        with pytest.raises(UserError, match="not inside an image of 160×120"):
            box_host.crop(image, boxes, window, 10, 10)


# ---- on the device ----

MASK = np.array([True])
DEVICE = {
    "flip": box_augment.flip_left_right,
    "shift": partial(box_augment.shift, pixels=(7, -12)),
    "shift over the border": partial(box_augment.shift, pixels=(-55, 90)),
    "zoom in": partial(box_augment.zoom, factor=1.7),
    "zoom out": partial(box_augment.zoom, factor=0.6),
    "translate": partial(box_augment.affine, matrix=augment.affine_matrix(offset=(5.5, -3.25))),
    "half turn": partial(box_augment.affine, matrix=augment.affine_matrix(degrees=180)),
    "quarter turn": partial(box_augment.affine, matrix=augment.affine_matrix(degrees=90, offset=(3, 8))),
}


# Compiled whole: one by one their operations take four times as long to compile.
SHIFT, AFFINE, FLIP = map(jax.jit, (box_augment.shift, box_augment.affine, box_augment.flip_left_right))


def floats(image):
    return image.astype(np.float32) / 255


@pytest.mark.parametrize("name", DEVICE)
def test_on_the_device_boxes_stay_on_the_paint(name):
    image, boxes = picture()
    new, moved, mask = jax.jit(DEVICE[name])(floats(image), boxes, MASK)
    assert (new.shape, moved.shape, mask.tolist()) == (image.shape, (1, 4), [True])
    # Where the paint is cut by the border, a profile ends in a pixel that is covered in part.
    np.testing.assert_allclose(moved[0], extent(new), atol=0.6 if name == "zoom out" else 0.1)


@pytest.mark.parametrize("degrees", [-70.0, 20.0, 45.0, 130.0])
def test_a_turned_box_is_the_upright_one_around(degrees):
    image, boxes = picture((60, 50, 100, 70))
    new, moved, _ = AFFINE(floats(image), boxes, MASK, augment.affine_matrix(degrees, 0.9, (4, -6)))
    rows, columns = np.nonzero(np.asarray(new)[..., 0] > 0.1)
    found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(moved[0], found, atol=1.3)


def test_random_operations_keep_boxes_on_the_paint_in_a_batch():
    image, boxes = picture((60, 40, 100, 80))
    images, corners = (np.repeat(x[None], 32, 0) for x in (floats(image), boxes))
    one = box_augment.compose(
        partial(box_augment.random_shift, max_pixels=9),
        partial(box_augment.random_affine, max_change=0.2, max_pixels=10.0),
        box_augment.random_flip_left_right,
        box_augment.on_image(partial(augment.random_brightness, max_change=0.3)),
    )
    batch = jax.jit(partial(box_augment.per_example, one))
    new, moved, masks = batch(jax.random.key(0), images, corners, np.ones((32, 1), bool))
    assert (new.shape, moved.shape, masks.shape) == (images.shape, (32, 1, 4), (32, 1))
    assert masks.all()
    for i in range(32):
        np.testing.assert_allclose(moved[i, 0], extent(new[i]), atol=0.7)
    centres = np.asarray(moved[:, 0, 0] + moved[:, 0, 2]) / 2
    assert len(np.unique(centres)) == 32
    again = batch(jax.random.key(0), images[:5], corners[:5], np.ones((5, 1), bool))
    np.testing.assert_allclose(again[1], moved[:5], atol=1e-4)


def test_each_operation_of_a_chain_draws_for_itself():
    image, boxes = picture((60, 40, 100, 80))
    shift = partial(box_augment.random_shift, max_pixels=9)
    twice = jax.jit(jax.vmap(lambda key: box_augment.compose(shift, shift)(key, floats(image), boxes, MASK)[1]))
    moves = np.asarray(twice(jax.random.split(jax.random.key(0), 20)))[:, 0, 0] - 60
    assert (moves % 2).any()  # the same shift twice is even


def test_padding_stays_padding_and_hidden_boxes_fall():
    image, _ = picture(height=100, width=100)
    boxes = np.array([[10, 10, 30, 30], [60, 60, 100, 100], [0, 0, 12, 100], [7, 7, 9, 9]], np.float32)
    mask = np.array([True, True, True, False])
    _, moved, kept = SHIFT(floats(image), boxes, mask, (0, -10))
    np.testing.assert_array_equal(moved, [[0, 10, 20, 30], [50, 60, 90, 100], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert kept.tolist() == [True, True, False, False]
    _, _, kept = SHIFT(floats(image), boxes, mask, (0, -10), min_visible=0.1)
    assert kept.tolist() == [True, True, True, False]
    _, _, kept = FLIP(floats(image), np.array([[5, 5, 5, 9]], np.float32), MASK)
    assert not kept.any()  # never had an area
    _, moved, kept = FLIP(floats(image), boxes, np.zeros(4, bool))
    assert not moved.any()
    assert not kept.any()


@pytest.mark.parametrize("name", ["shift", "affine", "flip"])
def test_the_neutral_parameter_changes_nothing(name):
    image, boxes = floats(rng().integers(0, 256, (30, 40, 3), np.uint8)), np.array([[3, 4, 20.5, 29]], np.float32)
    same = {
        "shift": lambda *x: SHIFT(*x, (0, 0)),
        "affine": lambda *x: AFFINE(*x, jnp.eye(2, 3)),
        "flip": jax.jit(partial(box_augment.random_flip_left_right, jax.random.key(0), probability=0.0)),
    }[name]
    for new, old in zip(same(image, boxes, MASK), (image, boxes, MASK), strict=True):
        np.testing.assert_array_equal(new, old)


def test_flips_half_of_the_time_and_ranges_are_checked():
    image, boxes = picture((10, 10, 30, 30), 40, 60)
    flip = jax.vmap(lambda key: box_augment.random_flip_left_right(key, floats(image), boxes, MASK)[1][0, 0])
    found = np.asarray(jax.jit(flip)(jax.random.split(jax.random.key(1), 200)))
    assert set(found) == {10, 30}
    assert 70 < (found == 30).sum() < 130
    with pytest.raises(ValueError, match="max_change must be in 0…1"):
        box_augment.random_affine(jax.random.key(0), floats(image), boxes, MASK, max_change=1.0)
