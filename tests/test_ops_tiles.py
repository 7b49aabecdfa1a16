"""Tiles of ops.tiles: their cover, and the results of networks in tiles against those of the whole image."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjax import models, nn
from cnnjax.ops import tiles
from cnnjax.types import UserError


@given(st.integers(1, 700), st.integers(1, 6), st.integers(0, 3), st.sampled_from([1, 4, 32]))
def test_every_pixel_is_kept_once_and_lies_within_its_tile(length, cells, overlaps, multiple):
    overlap = 2 * overlaps * multiple
    size = overlap + cells * multiple
    found = tiles.along(length, size, overlap, multiple)
    assert [each.first for each in found] == [0, *(each.last for each in found[:-1])]
    assert found[-1].last == found[-1].stop == length
    for each in found:
        assert each.start <= each.first < each.last <= each.stop <= each.start + size
        assert each.start % multiple == 0
        assert each.start == 0 or each.first - each.start >= overlap // 2
        assert each.stop == length or each.stop - each.last >= overlap // 2
    shapes = {each.stop - each.start for each in found}
    assert len(shapes) <= 2
    assert min(shapes) > size - multiple or len(found) == 1


@pytest.mark.parametrize(("size", "overlap"), [(64, 64), (70, 0), (128, 32), (32, 64)])
def test_tiles_that_cannot_be_are_an_error(size, overlap):
    with pytest.raises(UserError, match=f"tiles of {size} pixels that overlap by {overlap}: expected multiples of 32"):
        tiles.along(500, size, overlap)


def test_a_network_of_known_radius_gives_the_same_in_tiles():
    """Two 3×3 convolutions around a pooling, in whole numbers: a radius of 4 pixels, the same arithmetic everywhere."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (52, 72, 3)).astype(np.float32)
    first, second = (rng.integers(-2, 3, (3, 3, *channels)).astype(np.float32) for channels in ((3, 4), (4, 2)))
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    @jax.jit
    def compute(x):
        y = conv(nn.max_pool(conv(x, first), 2), second)
        return {"large": y.repeat(4, 1).repeat(4, 2), "small": x[..., 0]}

    whole = tiles.predict(compute, image, 4096, 0)
    assert (whole["large"].shape, whole["small"].shape) == ((104, 144, 2), (52, 72))
    found = tiles.predict(compute, image, 32, 16, multiple=2)
    for name, x in whole.items():
        np.testing.assert_array_equal(found[name], x)
    # Without an overlap the borders of tiles show.
    assert (tiles.predict(compute, image, 32, 0, multiple=2)["large"] != whole["large"]).any()


def test_super_resolution_in_tiles_is_that_of_the_whole_photo():
    model = models.create("edsr", blocks=2, features=8)
    image = np.random.default_rng(0).random((61, 90, 3), np.float32)
    variables = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(2).normal(size=x.shape).astype(np.float32),
        model.init(jax.random.key(0), image[None]),
    )
    compute = jax.jit(lambda x: {"image": model.apply(variables, x)[0]})
    whole = np.asarray(compute(image[None])["image"][0])
    found = tiles.predict(compute, image, 48, 24, multiple=1)
    np.testing.assert_allclose(found["image"], whole, atol=2e-6)
