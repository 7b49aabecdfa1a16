"""Color in HSV against colorsys, at the neutral parameters, and in its draws."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import augment, color

# RGB and HSV by hand: the corners of the cube, grays, and an orange.
HAND = [
    ((1, 0, 0), (0, 1, 1)),
    ((1, 1, 0), (1 / 6, 1, 1)),
    ((0, 1, 0), (1 / 3, 1, 1)),
    ((0, 1, 1), (1 / 2, 1, 1)),
    ((0, 0, 1), (2 / 3, 1, 1)),
    ((1, 0, 1), (5 / 6, 1, 1)),
    ((0, 0, 0), (0, 0, 0)),
    ((1, 1, 1), (0, 0, 1)),
    ((0.5, 0.5, 0.5), (0, 0, 0.5)),
    ((0.8, 0.5, 0.2), (1 / 12, 0.75, 0.8)),
]
IMAGE = np.random.default_rng(0).random((9, 12, 3), np.float32)
HSV = jax.jit(color.hsv)


def test_both_ways_by_hand():
    rgb, hsv = (np.array(each, np.float32) for each in zip(*HAND, strict=True))
    np.testing.assert_allclose(color.rgb_to_hsv(rgb), hsv, atol=1e-6)
    np.testing.assert_allclose(color.hsv_to_rgb(hsv), rgb, atol=1e-6)


def test_both_ways_agree_with_colorsys():
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 4, (500, 3)) / 3  # many equal channels
    every = np.concatenate([levels, rng.random((500, 3))]).astype(np.float32)
    want = np.array([colorsys.rgb_to_hsv(*map(float, rgb)) for rgb in every])
    got = np.asarray(color.rgb_to_hsv(every))
    around = np.abs(got - want)[:, 0]
    assert np.minimum(around, 1 - around).max() < 1e-5
    np.testing.assert_allclose(got[:, 1:], want[:, 1:], atol=1e-6)
    back = np.array([colorsys.hsv_to_rgb(*map(float, hsv)) for hsv in every])
    np.testing.assert_allclose(color.hsv_to_rgb(every), back, atol=1e-5)


@pytest.mark.parametrize(("hue", "saturation", "value"), [(0.1, 1.0, 1.0), (-0.3, 0.5, 1.4), (0.7, 3.0, 0.6)])
def test_a_change_is_colorsys_s(hue, saturation, value):
    got = HSV({"image": IMAGE}, hue, saturation, value)["image"]
    hsv = np.array([[colorsys.rgb_to_hsv(*map(float, rgb)) for rgb in row] for row in IMAGE])
    hsv = np.stack(
        [(hsv[..., 0] + hue) % 1, (hsv[..., 1] * saturation).clip(0, 1), (hsv[..., 2] * value).clip(0, 1)], -1
    )
    want = [[colorsys.hsv_to_rgb(*each) for each in row] for row in hsv]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.dtype == jnp.float32


def test_the_neutral_change_is_none_and_other_fields_stay():
    example = {"image": IMAGE, "boxes": np.ones((2, 4), np.float32), "label": np.int32(3)}
    new = HSV(example)
    np.testing.assert_array_equal(new["image"], IMAGE)
    np.testing.assert_array_equal(new["boxes"], example["boxes"])
    assert new["label"] == 3
    gray = IMAGE[..., :1]
    np.testing.assert_array_equal(HSV({"image": gray}, 0.2, 1.5)["image"], gray)
    np.testing.assert_allclose(HSV({"image": gray}, 0.2, 1.5, 1.3)["image"], (gray * np.float32(1.3)).clip(0, 1))
    half = jax.jit(color.hsv)({"image": IMAGE.astype(jnp.bfloat16)}, 0.1, 1.2)["image"]
    assert half.dtype == jnp.bfloat16


def test_draws_lie_in_their_ranges_and_change_each_image():
    one = partial(color.random_hsv, hue=0.1, saturation=1.5, exposure=2.0)
    pixel = np.array([[[0.4, 0.3, 0.2]]], np.float32)
    images = np.repeat(pixel[None], 1000, 0)
    found = jax.jit(partial(augment.per_example, one))(jax.random.key(0), {"image": images})["image"][:, 0, 0]
    hsv, before = np.asarray(color.rgb_to_hsv(found)), np.asarray(color.rgb_to_hsv(pixel))[0, 0]
    hue = (hsv[:, 0] - before[0] + 0.5) % 1 - 0.5
    assert -0.1 <= hue.min() < -0.098
    assert 0.098 < hue.max() <= 0.1
    for channel, limit in ((1, 1.5), (2, 2.0)):
        factor = hsv[:, channel] / before[channel]
        assert 1 / limit - 1e-5 <= factor.min() < 1.02 / limit
        assert 0.98 * limit < factor.max() <= limit + 1e-5
        assert 430 < (factor > 1).sum() < 570
        larger = factor[factor > 1]
        assert abs(larger.mean() - (1 + limit) / 2) < 0.03  # uniform
    assert len(np.unique(found, axis=0)) > 990


@pytest.mark.parametrize("options", [{"hue": 0.6}, {"hue": -0.1}, {"saturation": 0.9}, {"exposure": 0.0}])
def test_impossible_ranges_are_refused(options):
    with pytest.raises(ValueError, match=r"hue must be in 0…0\.5, the others at least 1"):
        color.random_hsv(jax.random.key(0), {"image": IMAGE}, **options)


@pytest.mark.parametrize("image", [IMAGE[None], np.uint8(255 * IMAGE), IMAGE[..., :2]])
def test_other_images_are_refused(image):
    with pytest.raises(TypeError, match="expected one image, float"):
        color.hsv({"image": image})
