"""Windows that slide over pictures: places, contents, scales."""

import jax
import numpy as np
import pytest

from cnnjax.ops.sliding import Windows

PICTURE = np.random.default_rng(0).integers(0, 256, (2, 20, 26, 3), np.uint8)


def test_windows_by_hand():
    windows = Windows(8, 4, (1.0,))
    top, left = windows.grid(20, 27)
    assert top.tolist() == [[0] * 5, [4] * 5, [8] * 5, [12] * 5]
    assert left[0].tolist() == [0, 4, 8, 12, 16]
    cut = windows.cut(PICTURE)
    assert cut.shape == (2, 4, 5, 8, 8, 3)
    np.testing.assert_array_equal(cut[1, 2, 3], PICTURE[1, 8:16, 12:20])
    assert windows.grid(7, 20)[0].shape == (0, 4)


def test_levels_are_resized_pictures_with_half_a_window_around():
    whole, half = Windows(8, 4, (1.0, 0.5)).levels(PICTURE)
    assert (whole.images.shape, half.images.shape) == ((2, 28, 34, 3), (2, 18, 21, 3))
    np.testing.assert_array_equal(whole.images[:, 4:-4, 4:-4], PICTURE)
    np.testing.assert_array_equal(whole.images[:, 0, 4:-4], PICTURE[:, 0])
    np.testing.assert_array_equal(half.images, np.round(half.images))
    np.testing.assert_allclose(half.factors, [0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("scale", [1.0, 0.75, 0.5])
def test_a_box_in_a_window_is_found_in_the_picture(scale):
    picture = np.zeros((1, 64, 48, 1), np.uint8)
    picture[0, 20:36, 12:24] = 200
    windows = Windows(32, 4, (scale,))
    (level,) = jax.jit(windows.levels)(picture)
    cut = np.asarray(windows.cut(level.images))[0, ..., 0] >= 100
    seen = 0
    for i, j in np.ndindex(cut.shape[:2]):
        rows, columns = np.flatnonzero(cut[i, j].any(1)), np.flatnonzero(cut[i, j].any(0))
        if len(rows) == round(16 * scale) and len(columns) == round(12 * scale):
            box = np.zeros((1, *cut.shape[:2], 4), np.float32)
            box[0, i, j] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            np.testing.assert_allclose(windows.in_picture(box, level)[0, i, j], [12, 20, 24, 36], atol=1e-4)
            seen += 1
    assert seen > 10
