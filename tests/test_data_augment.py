"""Augmentation of images against PIL, NumPy and SciPy, at the neutral parameter, and over keys and devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance

from cnnjax.data import augment, mixing

RNG = np.random.default_rng(0)
IMAGE = RNG.random((12, 17, 3), dtype=np.float32)
BATCH = RNG.random((8, 12, 17, 3), dtype=np.float32)


def image_of(op, image, *parameters, **options):
    """Result of a deterministic operation on an image without other fields."""
    return op({"image": image}, *parameters, **options)["image"]


def batch_of(op):
    """(key, images [n, h, w, c]) → images, compiled."""
    return jax.jit(lambda key, images: augment.per_example(op, key, {"image": images})["image"])


RANDOM = {
    "shift": partial(augment.random_shift, max_pixels=3),
    "flip": augment.random_flip_left_right,
    "flip up": augment.random_flip_up_down,
    "rotate": partial(augment.random_rotate, max_degrees=20.0),
    "zoom": partial(augment.random_zoom, max_change=0.3),
    "translate": partial(augment.random_translate, max_pixels=2.5),
    "affine": partial(augment.random_affine, max_degrees=9.0, max_change=0.1, max_pixels=2.0),
    "brightness": partial(augment.random_brightness, max_change=0.4),
    "contrast": partial(augment.random_contrast, max_change=0.4),
    "cutout": partial(augment.random_cutout, side=5),
}
NEUTRAL = {
    "shift": lambda x: augment.shift(x, (0, 0)),
    "flip": lambda x: augment.random_flip_left_right(jax.random.key(0), x, probability=0.0),
    "affine": lambda x: augment.affine(x, jnp.eye(2, 3)),
    "affine with a fill": lambda x: augment.affine(x, jnp.eye(2, 3), 0.3),
    "rotate": lambda x: augment.rotate(x, 0.0),
    "zoom": lambda x: augment.zoom(x, 1.0),
    "translate": lambda x: augment.translate(x, (0.0, 0.0)),
    "brightness": lambda x: augment.brightness(x, 1.0),
    "contrast": lambda x: augment.contrast(x, 1.0),
    "cutout": lambda x: augment.cutout(x, (3, 3), 0),
}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("shape", [(12, 17, 3), (28, 28, 1)])
def test_neutral_parameter_is_the_identity(name, shape):
    image = RNG.random(shape, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(NEUTRAL[name])({"image": image})["image"], image)


@pytest.mark.parametrize("down", [-20, -2, 0, 3])
@pytest.mark.parametrize("right", [-3, 0, 5])
def test_shift_agrees_with_scipy(down, right):
    want = scipy.ndimage.shift(IMAGE, (down, right, 0), order=0, mode="constant", cval=0.25)
    np.testing.assert_array_equal(image_of(augment.shift, IMAGE, (down, right), fill=0.25), want)


def test_fill_is_per_channel():
    fill = jnp.array([0.1, 0.2, 0.3])
    for out in (
        image_of(augment.shift, IMAGE, (1, 0), fill),
        image_of(augment.translate, IMAGE, (1, 0), fill=fill),
        image_of(augment.cutout, IMAGE, (0, 0), 1, fill),
    ):
        np.testing.assert_array_equal(out[0, 0], fill)


def test_flip_agrees_with_numpy():
    np.testing.assert_array_equal(image_of(augment.flip_left_right, IMAGE), np.fliplr(IMAGE))
    np.testing.assert_array_equal(image_of(augment.flip_up_down, IMAGE), np.flipud(IMAGE))


def test_affine_agrees_with_scipy():
    matrix = np.array([[0.9, 0.2, 1.3], [-0.3, 1.1, -0.7]], np.float32)
    center = (np.array(IMAGE.shape[:2]) - 1) / 2
    offset = center + matrix[:, 2] - matrix[:, :2] @ center
    for c in range(3):
        want = scipy.ndimage.affine_transform(
            IMAGE[..., c], matrix[:, :2], offset, order=1, mode="grid-constant", cval=0.5
        )
        np.testing.assert_allclose(image_of(augment.affine, IMAGE, matrix, 0.5)[..., c], want, atol=1e-5)


@pytest.mark.parametrize("degrees", [30.0, -75.0])
def test_rotate_agrees_with_pil(degrees):
    square = RNG.random((21, 21, 1), dtype=np.float32)
    pil = Image.fromarray(square[..., 0]).rotate(degrees, Image.Resampling.BILINEAR)
    got, want = np.asarray(image_of(augment.rotate, square, degrees))[..., 0], np.asarray(pil)
    # Outside the border PIL takes the nearest pixel and `rotate` the fill, so only pixels inside are compared.
    y, x = np.mgrid[-10:11, -10:11]
    inside = np.hypot(y, x) < 9
    np.testing.assert_allclose(got[inside], want[inside], atol=1e-5)


def test_rotate_by_90_degrees_is_counter_clockwise():
    square = RNG.random((9, 9, 3), dtype=np.float32)
    np.testing.assert_allclose(image_of(augment.rotate, square, 90.0), np.rot90(square), atol=1e-5)


def test_affine_matrix_zooms_then_rotates_then_moves():
    # One bright pixel 2 right of the center: zoomed ×2 → 4 right, rotated 90° → 4 up, moved (1, 3).
    image = np.zeros((21, 21, 1), np.float32)
    image[10, 12] = 1
    out = image_of(augment.affine, image, augment.affine_matrix(90.0, 2.0, (1, 3)))
    assert np.unravel_index(np.argmax(out), out.shape) == (10 - 4 + 1, 10 + 3, 0)


def test_zoom_enlarges():
    image = np.zeros((21, 21, 1), np.float32)
    image[8:13, 8:13] = 1
    np.testing.assert_allclose(image_of(augment.zoom, image, 3.0).sum(), 225, rtol=0.05)
    np.testing.assert_allclose(image_of(augment.zoom, image, 0.6).sum(), 9, rtol=0.05)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.8, 1.4, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("op", "enhance"),
    [(augment.brightness, ImageEnhance.Brightness), (augment.contrast, ImageEnhance.Contrast)],
)
def test_color_agrees_with_pil(op, enhance, channels, factor):
    image = RNG.integers(0, 256, (12, 17, channels), dtype=np.uint8)
    want = np.asarray(enhance(Image.fromarray(image.squeeze())).enhance(factor)).reshape(image.shape)
    got = image_of(op, image.astype(np.float32) / 255, factor)
    # PIL truncates the result and rounds the mean gray, whose error |1 − factor| multiplies.
    np.testing.assert_allclose(got, want / 255, atol=(1 + 0.5 * abs(1 - factor)) / 255 + 1e-6)


def test_cutout_fills_exactly_the_square():
    want = IMAGE.copy()
    want[2:6, 0:3] = 0.5
    np.testing.assert_array_equal(image_of(augment.cutout, IMAGE, (2, -1), 4, 0.5), want)


@pytest.mark.parametrize("name", RANDOM)
def test_random_op_depends_on_the_key_alone(name):
    apply = batch_of(RANDOM[name])
    once, again = apply(jax.random.key(1), BATCH), apply(jax.random.key(1), BATCH)
    np.testing.assert_array_equal(once, again)
    assert once.shape == BATCH.shape
    assert not np.array_equal(once, apply(jax.random.key(2), BATCH))
    # The examples of a batch have keys of their own, for any batch size.
    same = apply(jax.random.key(1), jnp.repeat(BATCH[:1], 8, axis=0))
    assert len(np.unique(np.asarray(same).reshape(8, -1), axis=0)) > 1
    np.testing.assert_allclose(apply(jax.random.key(1), BATCH[:3]), once[:3], atol=1e-5)


def _many(op, image, n=400):
    keys = jax.random.split(jax.random.key(0), n)
    return np.asarray(jax.vmap(lambda key: op(key, {"image": image})["image"])(keys))


def test_random_shift_reaches_its_bounds_and_no_further():
    image = np.zeros((15, 15, 1), np.float32)
    image[7, 7] = 1
    where = np.argwhere(_many(partial(augment.random_shift, max_pixels=2), image)[..., 0])[:, 1:] - 7
    assert len(np.unique(where, axis=0)) == 25
    assert abs(where).max() == 2


def test_random_flip_has_its_probability():
    image = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    flipped = _many(partial(augment.random_flip_left_right, probability=0.2), image)[:, 0, 0, 0] == 3
    assert 0.12 < flipped.mean() < 0.28


def test_random_brightness_and_contrast_stay_in_their_range():
    image = np.full((1, 1, 1), 0.5, np.float32)
    factors = _many(partial(augment.random_brightness, max_change=0.3), image) / 0.5
    assert 0.7 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.3001
    pair = np.array([0.4, 0.6], np.float32).reshape(1, 2, 1)
    extent = np.ptp(_many(partial(augment.random_contrast, max_change=0.3), pair), axis=(1, 2, 3)) / 0.2
    assert 0.699 <= extent.min() < 0.72
    assert 1.28 < extent.max() <= 1.301


def test_random_affine_parameters_stay_in_their_range():
    # An image of coordinates shows where each output pixel comes from.
    y, x = np.mgrid[-20:21, -20:21].astype(np.float32)
    image = np.stack([y, x], axis=-1)
    moved = _many(partial(augment.random_translate, max_pixels=2.5), image)[:, 20, 20]
    assert 2.3 < abs(moved).max() <= 2.5001
    rotated = _many(partial(augment.random_rotate, max_degrees=30.0), image)[:, 20, 30]
    angles = np.rad2deg(np.arctan2(rotated[:, 0], rotated[:, 1]))
    assert 28 < abs(angles).max() <= 30.001
    np.testing.assert_allclose(np.hypot(*rotated.T), 10, atol=1e-4)
    zoomed = 10 / _many(partial(augment.random_zoom, max_change=0.25), image)[:, 20, 30, 1]
    assert 0.749 < zoomed.min() < 0.77
    assert 1.23 < zoomed.max() < 1.251


def test_random_cutout_centers_its_square_on_every_pixel_alike():
    image = np.ones((6, 7, 1), np.float32)
    hidden = _many(partial(augment.random_cutout, side=3), image, n=4000)[..., 0] == 0
    assert hidden.sum((1, 2)).max() == 9
    # A pixel is hidden by the centers within one pixel of it: 4 of the 42 at a corner, 9 inside.
    centers = np.outer([2, 3, 3, 3, 3, 2], [2, 3, 3, 3, 3, 3, 2])
    np.testing.assert_allclose(hidden.mean(0), centers / 42, atol=0.03)


@pytest.mark.parametrize("name", RANDOM)
def test_values_stay_in_range_and_gradients_are_finite(name):
    def total(images):
        out = augment.per_example(RANDOM[name], jax.random.key(3), {"image": images})["image"]
        return out.sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(BATCH))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + 1e-6
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).sum() > 0


def test_compose_applies_from_left_to_right_with_separate_keys():
    def add(key, example):
        return {"image": example["image"] + 1.0}

    def double(key, example):
        return {"image": example["image"] * 2.0}

    def draw(key, example):
        return {"image": example["image"] + jax.random.uniform(key)}

    key = jax.random.key(0)
    np.testing.assert_array_equal(augment.compose(add, double)(key, {"image": IMAGE})["image"], (IMAGE + 1) * 2)
    once, twice = (augment.compose(*[draw] * n)(key, {"image": jnp.zeros(())})["image"] for n in (1, 2))
    assert not np.isclose(twice, 2 * once)


def test_mix_and_mixup():
    labels = np.eye(8, dtype=np.float32)
    unchanged = mixing.mix(BATCH, labels, np.ones(8, np.float32))
    np.testing.assert_array_equal(unchanged[0], BATCH)
    np.testing.assert_array_equal(unchanged[1], labels)

    images, mixed = jax.jit(partial(mixing.mixup, alpha=0.4))(jax.random.key(0), BATCH, labels)
    np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-6)
    weight = np.diag(mixed)
    assert (weight >= 0).all()
    assert (weight <= 1).all()
    assert len(np.unique(weight)) == 8
    share = weight[:, None, None, None]
    np.testing.assert_allclose(images, share * BATCH + (1 - share) * np.roll(BATCH, 1, 0), atol=1e-6)
    # Each image keeps the labels of exactly the two images it is made of.
    np.testing.assert_allclose(images, np.einsum("nm,mhwc->nhwc", mixed, BATCH), atol=1e-6)

    gradient = jax.grad(lambda x: mixing.mix(x, labels, weight)[0].sum())(BATCH)
    np.testing.assert_allclose(gradient[:, 0, 0, 0], weight + 1 - np.roll(weight, -1), atol=1e-6)


@pytest.mark.parametrize(("alpha", "deviation"), [(0.2, 0.42), (1.0, 1 / 12**0.5)])
def test_mixup_weights_are_beta_distributed(alpha, deviation):
    images = np.zeros((4000, 1, 1, 1), np.float32)
    images[::2] = 1
    weight = mixing.mixup(jax.random.key(0), images, np.eye(4000, 2, dtype=np.float32), alpha)[0][::2]
    np.testing.assert_allclose(np.mean(weight), 0.5, atol=0.03)
    np.testing.assert_allclose(np.std(weight), deviation, atol=0.02)


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match=r"float \[h, w, c\], got float32 \[8, 12, 17, 3\]"):
        image_of(augment.shift, BATCH, (1, 1))
    with pytest.raises(TypeError, match="got uint8"):
        image_of(augment.brightness, (IMAGE * 255).astype(np.uint8), 1.0)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        augment.random_zoom(jax.random.key(0), {"image": IMAGE}, max_change=1.5)
    with pytest.raises(ValueError, match="alpha must be above 0"):
        mixing.mixup(jax.random.key(0), BATCH, np.eye(8, dtype=np.float32), 0.0)
    with pytest.raises(TypeError, match="float labels"):
        mixing.mix(BATCH, np.eye(8, dtype=np.int32), np.ones(8, np.float32))


def test_eight_devices_give_the_same_and_each_augments_its_own_shard():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    place = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("batch")))
    names = ("affine", "shift", "flip", "brightness", "contrast", "cutout")
    apply = batch_of(augment.compose(*(RANDOM[name] for name in names)))
    key = jax.random.key(0)
    # One device fuses the arithmetic of coordinates in another way than eight: the last bits may differ.
    np.testing.assert_allclose(apply(key, place(BATCH)), apply(key, BATCH), rtol=0, atol=1e-5)
    compiled = apply.lower(key, place(BATCH)).compile().as_text()
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", compiled)

    mixed = jax.jit(partial(mixing.mixup, alpha=0.4))
    labels = np.eye(8, dtype=np.float32)
    for got, want in zip(mixed(key, place(BATCH), place(labels)), mixed(key, BATCH, labels), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_cut_mix_pastes_the_neighbor_s_box_and_mixes_labels_by_pixels():
    images = jnp.stack([jnp.full((4, 6, 1), value, jnp.float32) for value in (0.0, 1.0, 2.0)])
    labels = jnp.eye(3)
    corners, sizes = jnp.array([[1, 2], [-2, -1], [3, 5]]), jnp.array([[2, 3], [3, 3], [9, 9]])
    mixed, targets = mixing.cut_mix(images, labels, corners, sizes)
    expected = np.array(images)
    expected[0, 1:3, 2:5], expected[1, 0:1, 0:2], expected[2, 3:, 5:] = 2, 0, 1
    assert np.array_equal(mixed, expected)
    shares = np.array([6, 2, 1]) / 24
    for i, share in enumerate(shares):
        want = np.zeros(3)
        want[i], want[i - 1] = 1 - share, share
        np.testing.assert_allclose(targets[i], want, rtol=1e-6)


def test_cutmix_pastes_a_share_that_is_uniform_before_clipping():
    """Beta(1, 1): the average box has half the image's area; clipping removes a part of it."""
    images, labels = jnp.zeros((2000, 16, 16, 1)), jax.nn.one_hot(jnp.arange(2000) % 2, 2)
    mixed, targets = mixing.cutmix(jax.random.key(0), images, labels, 1.0)
    assert mixed.shape == images.shape
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    pasted = 1 - jnp.take_along_axis(targets, (jnp.arange(2000) % 2)[:, None], 1)
    # A side of r times the image's keeps r − r²/4 of it, r² is uniform: 1/2 − 1/5 + 1/48.
    assert abs(float(pasted.mean()) - 0.3208) < 0.02
    with pytest.raises(ValueError, match="alpha must be above 0"):
        mixing.cutmix(jax.random.key(0), images, labels, 0.0)
