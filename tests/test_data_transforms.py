"""Movement of every field with the pixels: a painted rectangle is measured after each transform, on host and device."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import assert_box_on_the_mask, assert_masks_on_the_box, example, examples, extent, picture, rng
from PIL import Image

from cnnjax.data import augment, transforms
from cnnjax.types import UserError

# ---- on the host ----

HOST = {
    "squeeze": transforms.squeeze(100),
    "resize_and_crop": transforms.resize_and_crop(100, 80),
    "resize_and_crop, odd": transforms.resize_and_crop(101, 64),
    "crop_and_resize": transforms.crop_and_resize(70),
    "center_crop": transforms.center_crop(90),
    "center_crop, larger": transforms.center_crop(250),
    "crop": transforms.crop((20, 30, 120, 110), 64, 64),
    "crop into the box": transforms.crop((50, 50, 120, 110), 120, 70),
    "letterbox": transforms.letterbox(90, fill=0),
    "letterbox, larger": transforms.letterbox(333, fill=0),
    "pad": transforms.pad(170, 200, fill=0),
    "flip": transforms.flip_left_right(),
}


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("upright", [False, True])
def test_on_the_host_every_field_stays_on_the_paint(name, upright):
    before = example((40, 60, 70, 100), 160, 120) if upright else example()
    new = HOST[name](before)
    assert (new["image"].dtype, new["boxes"].dtype, new["boxes"].shape) == (np.uint8, np.float32, (1, 4))
    assert (new["box_mask"].tolist(), new["label"]) == ([True], 5)
    np.testing.assert_allclose(new["boxes"][0], extent(new["image"]), atol=0.15)
    assert_masks_on_the_box(new)
    assert "box_mask" not in before


def test_random_crops_keep_every_field_on_the_paint():
    kept = 0
    for seed in range(60):
        new = transforms.random_resized_crop(96, share=(0.2, 1.0))(rng(seed), example())
        assert new["image"].shape == (96, 96, 3)
        if new["box_mask"][0]:
            # The resampling blurs an edge near the border.
            np.testing.assert_allclose(new["boxes"][0], extent(new["image"]), atol=0.6)
            assert_masks_on_the_box(new)
            kept += 1
        else:
            assert not new["boxes"].any()
    assert 30 < kept < 60


def test_flips_and_whole_windows_are_exact():
    image, boxes = picture()
    before = {"image": image, "boxes": boxes}
    flipped = transforms.flip_left_right()(before)
    np.testing.assert_array_equal(flipped["boxes"], [[70, 40, 130, 70]])
    np.testing.assert_array_equal(flipped["image"], np.fliplr(image))
    new = transforms.crop((20, 30, 84, 94), 64, 64)(before)
    np.testing.assert_array_equal(new["boxes"], [[10, 10, 64, 40]])
    np.testing.assert_array_equal(new["image"], image[30:94, 20:84])
    flips = [transforms.random_flip_left_right()(rng(seed), before)["boxes"][0, 0] for seed in range(40)]
    assert set(flips) == {30, 70}
    assert 8 < flips.count(30) < 32


def test_letterbox_and_pad_leave_the_fill_and_the_proportions():
    image = np.full((120, 160, 3), 9, np.uint8)
    segmentation, masks = np.ones((120, 160), np.int32), np.ones((2, 120, 160), bool)
    before = {"image": image, "segmentation": segmentation, "instance_masks": masks}
    new = transforms.letterbox(80, fill=200)(before)
    for rows, paint, label, mask in (
        (slice(10), 200, 255, False),
        (slice(10, 70), 9, 1, True),
        (slice(70, 80), 200, 255, False),
    ):
        assert (new["image"][rows] == paint).all()
        assert (new["segmentation"][rows] == label).all()
        assert (new["instance_masks"][:, rows] == mask).all()
    assert (new["segmentation"].dtype, new["instance_masks"].dtype) == (np.int32, bool)
    new = transforms.pad(130, 170, fill=3)(before)["image"]
    np.testing.assert_array_equal(new[:120, :160], image)
    assert (new[120:] == 3).all()
    assert (new[:, 160:] == 3).all()


def test_nearest_fields_agree_with_pil():
    plane = rng().integers(0, 256, (37, 53), np.uint8)
    window = (5, 3, 48, 30)
    new = transforms.crop(window, 20, 31)({"image": plane[..., None], "segmentation": plane})["segmentation"]
    want = Image.fromarray(plane).resize((31, 20), Image.Resampling.NEAREST, window)
    np.testing.assert_array_equal(new, want)


def test_boxes_are_kept_by_what_is_left_of_them():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 40, 40], [0, 0, 12, 100], [60, 60, 90, 90], [5, 5, 5, 9], [0, 0, 10, 10]], np.float32)
    before = {"image": image, "boxes": boxes}
    new = transforms.crop((10, 0, 60, 100), 100, 50, min_visible=0.25)(before)
    np.testing.assert_array_equal(new["boxes"], [[0, 0, 30, 40], *[[0, 0, 0, 0]] * 4])
    assert new["box_mask"].tolist() == [True, False, False, False, False]
    new = transforms.crop((10, 0, 60, 100), 100, 50, min_visible=0.1)(before)
    np.testing.assert_array_equal(new["boxes"][:2], [[0, 0, 30, 40], [0, 0, 2, 100]])
    assert new["box_mask"].tolist() == [True, True, False, False, False]
    assert new["image"].shape == (100, 50, 3)
    masked = {**before, "box_mask": np.array([False, True, True, True, True])}
    new = transforms.crop((10, 0, 60, 100), 100, 50, min_visible=0.1)(masked)
    assert new["box_mask"].tolist() == [False, True, False, False, False]


def test_windows_are_inside_and_have_the_share_and_ratio():
    shares, ratios = [], []
    for seed in range(200):
        left, top, right, bottom = transforms.random_window(rng(seed), 200, 300, (0.2, 0.5), (0.5, 2.0))
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        shares.append((right - left) * (bottom - top) / 60000)
        ratios.append((right - left) / (bottom - top))
    assert 0.19 < min(shares) < 0.23
    assert 0.47 < max(shares) < 0.51
    assert 0.49 < min(ratios) < 0.6
    assert 1.6 < max(ratios) < 2.03
    assert transforms.random_window(rng(), 10, 1000, (1.0, 1.0)) == (493, 0, 506, 10)  # no ratio fits: the nearest one
    assert transforms.random_window(rng(), 1, 1) == (0, 0, 1, 1)


def test_what_is_impossible_is_refused():
    with pytest.raises(UserError, match="no square of 90 pixels"):
        transforms.resize_and_crop(80, 90)
    for window in ((0, 0, 161, 100), (-1, 0, 5, 5), (5, 5, 5, 9)):
        with pytest.raises(UserError, match="not inside an image of 160×120"):
            transforms.crop(window, 10, 10)(example())
    with pytest.raises(UserError, match=r"120×160 pixels .* cannot be padded to 119×200"):
        transforms.pad(119, 200)(example())


def test_a_chain_gives_the_generator_to_what_draws():
    before = example()
    chain = transforms.compose(
        transforms.random_resized_crop(64, (0.5, 1.0)),
        transforms.random_flip_left_right(),
        transforms.squeeze(32),
        partial(transforms.pad_boxes, most=3),
    )
    new, generator = chain(rng(4), before), rng(4)
    by_hand = transforms.random_resized_crop(64, (0.5, 1.0))(generator, before)
    by_hand = transforms.squeeze(32)(transforms.random_flip_left_right()(generator, by_hand))
    np.testing.assert_array_equal(new["image"], by_hand["image"])
    np.testing.assert_array_equal(new["boxes"][:1], by_hand["boxes"])
    assert (new["boxes"].shape, new["instance_masks"].shape) == ((3, 4), (3, 32, 32))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(30, 40), (41, 29), (16, 16), (5, 300), (17, 16)])
def test_center_crop_is_resize_and_crop_by_hand(height, width, channels):
    image = np.random.default_rng(2).integers(0, 256, (height, width, channels), dtype=np.uint8)
    scale = 16 / min(height, width)
    size = (round(width * scale), round(height * scale))
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    pil = Image.fromarray(image.squeeze(-1) if channels == 1 else image).resize(size, Image.Resampling.BILINEAR)
    want = np.asarray(pil.crop((left, top, left + 16, top + 16))).reshape(16, 16, channels)
    got = transforms.center_crop(16)({"image": image})["image"]
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_squeeze_changes_the_proportions_and_nothing_of_the_right_size(channels):
    image = rng().integers(0, 256, (30, 40, channels), np.uint8)
    pil = Image.fromarray(image.squeeze(-1) if channels == 1 else image).resize((12, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        transforms.squeeze(12)({"image": image})["image"], np.asarray(pil).reshape(12, 12, channels)
    )
    np.testing.assert_array_equal(transforms.squeeze(30)({"image": image[:, :30]})["image"], image[:, :30])


# ---- on the device ----

DEVICE = {
    "flip": augment.flip_left_right,
    "flip up": augment.flip_up_down,
    "shift": partial(augment.shift, pixels=(7, -12)),
    "shift over the border": partial(augment.shift, pixels=(-55, 90)),
    "zoom in": partial(augment.zoom, factor=1.7),
    "zoom out": partial(augment.zoom, factor=0.6),
    "translate": partial(augment.affine, matrix=augment.affine_matrix(offset=(5.5, -3.25))),
    "half turn": partial(augment.affine, matrix=augment.affine_matrix(degrees=180)),
    "quarter turn": partial(augment.affine, matrix=augment.affine_matrix(degrees=90, offset=(3, 8))),
}


# Compiled as a whole: one by one, their operations take four times as long to compile.
SHIFT, AFFINE, FLIP = map(jax.jit, (augment.shift, augment.affine, augment.flip_left_right))


def floats(example):
    return {**example, "image": example["image"].astype(np.float32) / 255}


@pytest.mark.parametrize("name", DEVICE)
def test_on_the_device_every_field_stays_on_the_paint(name):
    before = floats(example())
    new = jax.jit(DEVICE[name])(before)
    assert new["box_mask"].tolist() == [True]
    assert new["label"] == 5
    chex.assert_trees_all_equal_shapes_and_dtypes({k: new[k] for k in before}, jax.tree.map(jnp.asarray, before))
    # Where the border cuts the painted rectangle, a profile ends in a pixel that is partly covered.
    np.testing.assert_allclose(new["boxes"][0], extent(new["image"]), atol=0.6 if name == "zoom out" else 0.1)
    assert_masks_on_the_box(jax.tree.map(np.asarray, new))


@pytest.mark.parametrize("degrees", [-70.0, 20.0, 45.0, 130.0])
def test_a_turned_box_is_the_upright_one_around(degrees):
    before = floats(example((60, 50, 100, 70)))
    new = AFFINE(before, augment.affine_matrix(degrees, 0.9, (4, -6)))
    for painted in (new["image"][..., 0] > 0.1, new["segmentation"] == 1, new["instance_masks"][0] == 1):
        rows, columns = np.nonzero(np.asarray(painted))
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(new["boxes"][0], found, atol=1.3)


def test_random_operations_keep_boxes_on_the_paint_in_a_batch():
    before = floats(example((60, 40, 100, 80)))
    images, corners = (np.repeat(before[name][None], 32, 0) for name in ("image", "boxes"))
    one = augment.compose(
        partial(augment.random_shift, max_pixels=9),
        partial(augment.random_affine, max_change=0.2, max_pixels=10.0),
        augment.random_flip_left_right,
        partial(augment.random_brightness, max_change=0.3),
    )
    batch = jax.jit(partial(augment.per_example, one))
    new = batch(jax.random.key(0), {"image": images, "boxes": corners, "label": np.arange(32)})
    moved = new["boxes"]
    assert (new["image"].shape, moved.shape, new["box_mask"].shape) == (images.shape, (32, 1, 4), (32, 1))
    assert new["box_mask"].all()
    assert new["label"].tolist() == list(range(32))
    for i in range(32):
        np.testing.assert_allclose(moved[i, 0], extent(new["image"][i]), atol=0.7)
    centers = np.asarray(moved[:, 0, 0] + moved[:, 0, 2]) / 2
    assert len(np.unique(centers)) == 32
    again = batch(jax.random.key(0), {"image": images[:5], "boxes": corners[:5]})
    np.testing.assert_allclose(again["boxes"], moved[:5], atol=1e-4)


def test_each_operation_of_a_chain_draws_for_itself():
    before = floats(example((60, 40, 100, 80)))
    shift = partial(augment.random_shift, max_pixels=9)
    twice = jax.jit(jax.vmap(lambda key: augment.compose(shift, shift)(key, before)["boxes"]))
    moves = np.asarray(twice(jax.random.split(jax.random.key(0), 20)))[:, 0, 0] - 60
    assert (moves % 2).any()  # the same shift twice is even


def test_padding_stays_padding_and_hidden_boxes_fall():
    boxes = np.array([[10, 10, 30, 30], [60, 60, 100, 100], [0, 0, 12, 100], [7, 7, 9, 9]], np.float32)
    before = {"image": np.zeros((100, 100, 3), np.float32), "boxes": boxes}
    before["box_mask"] = np.array([True, True, True, False])
    new = SHIFT(before, (0, -10))
    np.testing.assert_array_equal(new["boxes"], [[0, 10, 20, 30], [50, 60, 90, 100], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert new["box_mask"].tolist() == [True, True, False, False]
    assert SHIFT(before, (0, -10), min_visible=0.1)["box_mask"].tolist() == [True, True, True, False]
    without_area = {**before, "boxes": np.array([[5, 5, 5, 9]], np.float32), "box_mask": np.array([True])}
    assert not FLIP(without_area)["box_mask"].any()
    new = FLIP({**before, "box_mask": np.zeros(4, bool)})
    assert not new["boxes"].any()
    assert not new["box_mask"].any()


@pytest.mark.parametrize("name", ["shift", "affine", "flip"])
def test_the_neutral_parameter_changes_nothing(name):
    image = rng().integers(0, 256, (30, 40, 3), np.uint8)
    masks = rng().integers(0, 2, (2, 30, 40)).astype(bool)
    before = {"image": image, "boxes": np.array([[3, 4, 20.5, 29]], np.float32), "box_mask": np.array([True])}
    before = floats({**before, "segmentation": image[..., 0].astype(np.int32), "instance_masks": masks})
    new = {
        "shift": lambda x: SHIFT(x, (0, 0)),
        "affine": lambda x: AFFINE(x, jnp.eye(2, 3)),
        "flip": jax.jit(partial(augment.random_flip_left_right, jax.random.key(0), probability=0.0)),
    }[name](before)
    chex.assert_trees_all_equal(new, before)


def test_outside_is_marked_on_the_device():
    new = SHIFT(floats(example()), (5, 0))
    assert (new["segmentation"][:5] == 255).all()
    assert (new["instance_masks"][:, :5] == 0).all()
    new = AFFINE(floats(example()), augment.affine_matrix(zoom=0.5))
    assert (new["segmentation"][:29] == 255).all()
    assert (new["instance_masks"][:, :29] == 0).all()


def test_flips_half_of_the_time_and_ranges_are_checked():
    before = floats(example((10, 10, 30, 30), 40, 60))
    flip = jax.vmap(lambda key: augment.random_flip_left_right(key, before)["boxes"][0, 0])
    found = np.asarray(jax.jit(flip)(jax.random.split(jax.random.key(1), 200)))
    assert set(found) == {10, 30}
    assert 70 < (found == 30).sum() < 130
    with pytest.raises(ValueError, match="max_change must be in 0…1"):
        augment.random_affine(jax.random.key(0), before, max_change=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segmentation", np.zeros((3, 4), np.uint8)),
        ("instance_masks", np.zeros((120, 160), np.uint8)),
        ("boxes", np.zeros(4, np.float32)),
        ("boxes", np.zeros((2, 5), np.float32)),
        ("box_mask", np.zeros(2, bool)),
    ],
)
def test_fields_of_wrong_shapes_are_programming_errors(field, value):
    with pytest.raises(AssertionError):
        augment.flip_left_right({**floats(example()), field: value})


# ---- properties ----

GEOMETRIES = st.one_of(
    st.builds(transforms.squeeze, st.integers(20, 120)),
    st.builds(transforms.letterbox, st.integers(40, 120)),
    st.builds(transforms.center_crop, st.integers(20, 120)),
    st.builds(transforms.crop_and_resize, st.integers(20, 120)),
    st.builds(
        lambda small, more: transforms.resize_and_crop(small + more, small), st.integers(20, 90), st.integers(0, 30)
    ),
    st.builds(transforms.pad, st.integers(90, 120), st.integers(90, 120)),
    st.builds(transforms.flip_left_right),
)


@settings(max_examples=60, deadline=None)
@given(examples(), GEOMETRIES)
def test_host_fields_move_together(before, geometry):
    new = geometry(before)
    assert new["segmentation"].shape == new["image"].shape[:2]
    if new["box_mask"][0]:
        assert_box_on_the_mask(new["boxes"][0], new["instance_masks"][0])
        assert_box_on_the_mask(new["boxes"][0], new["segmentation"] == 1)


@settings(max_examples=60, deadline=None)
@given(examples(), GEOMETRIES, st.integers(0, 2**32 - 1))
def test_restore_undoes_what_a_geometry_did_to_boxes(before, geometry, seed):
    height, width = before["image"].shape[:2]
    where = geometry.geometry(height, width)
    scale, offset = where.coordinates(height, width)
    # Boxes that stay whole in the output.
    low = np.maximum(-offset / scale, 0)
    high = np.minimum((np.array(where.shape[::-1]) - offset) / scale, [width, height])
    corners = np.sort(rng(seed).uniform(low, high, (5, 2, 2)), axis=1)
    boxes = corners.reshape(5, 4).astype(np.float32)
    new = transforms.apply({**before, "boxes": boxes}, where, min_visible=0.0)
    restored = geometry.restore(new["boxes"], height, width)
    np.testing.assert_allclose(restored[new["box_mask"]], boxes[new["box_mask"]], atol=1e-3)
    assert (restored >= 0).all()
    assert (geometry.restore(np.array([[-99, -99, 999, 999]]), height, width) <= [width, height] * 2).all()


@settings(max_examples=30, deadline=None)
@given(examples())
def test_two_flips_are_none(before):
    twice = transforms.flip_left_right()(transforms.flip_left_right()(before))
    chex.assert_trees_all_equal({name: twice[name] for name in before}, before)
    assert twice["box_mask"].all()


SMALL = (40, 56)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(0, 24), st.integers(-20, 20), st.integers(-20, 20), st.floats(0.7, 1.6))
def test_device_fields_move_together(left, top, down, right, zoom):
    before = floats(example((left, top, left + 16, top + 16), *SMALL))
    for new in (
        FLIP(before),
        SHIFT(before, (down, right)),
        AFFINE(before, augment.affine_matrix(0.0, zoom, (down, right))),
    ):
        if new["box_mask"][0]:
            moved = np.asarray(new["boxes"][0])
            assert_box_on_the_mask(moved, np.asarray(new["instance_masks"][0]))
            assert_box_on_the_mask(moved, np.asarray(new["segmentation"]) == 1)
    twice = FLIP(FLIP(before))
    chex.assert_trees_all_equal({name: twice[name] for name in before}, before)
