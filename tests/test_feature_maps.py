"""The chapter's demonstrations: their arrays against NumPy and SciPy, their figures, their files."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.ndimage
from feature_maps import (
    ANGLES,
    Config,
    augmented,
    digit,
    equal_to_first,
    figures,
    line_filters,
    line_maps,
    load_photos,
    main,
    max_pool,
    padding_figures,
    pooled,
    rotation_maps,
    shifted_strokes,
    weakest_peak,
)
from PIL import Image

from cnnjax import settings
from cnnjax.types import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "feature_maps.py"


@pytest.fixture(scope="module")
def photos():
    return load_photos(step=8)


def test_photos_are_in_0_1():
    full = load_photos()
    assert full.shape == (2, 427, 640, 3)
    assert full.dtype == np.float32
    assert full.min() == 0
    assert full.max() == 1
    np.testing.assert_array_equal(load_photos(4), full[:, ::4, ::4])


def test_line_maps_agree_with_scipy(photos):
    maps = line_maps(photos)
    assert maps.shape == (*photos.shape[:3], 2)
    lines = line_filters()[:, :, 0, :]
    assert lines.sum((0, 1)).tolist() == [7, 7]
    for image, got in zip(photos, np.asarray(maps), strict=True):
        for k in range(2):
            want = scipy.ndimage.correlate(image.sum(-1), lines[..., k], mode="constant")
            np.testing.assert_allclose(got[..., k], want, rtol=1e-5)
    # By hand, in the middle and at a corner, where zeros pad three rows.
    np.testing.assert_allclose(maps[0, 20, 30, 0], photos[0, 17:24, 30].sum(), rtol=1e-5)
    np.testing.assert_allclose(maps[0, 20, 30, 1], photos[0, 20, 27:34].sum(), rtol=1e-5)
    np.testing.assert_allclose(maps[1, 0, 0, 0], photos[1, :4, 0].sum(), rtol=1e-5)


def test_padding_example_is_the_chapters():
    assert padding_figures() == {
        "padding/same_outputs": 3,
        "padding/same_zeros_left": 1,
        "padding/same_zeros_right": 2,
        "padding/valid_outputs": 2,
        "padding/valid_ignored": 2,
    }


def test_pooled_agrees_with_numpy(photos):
    photo = photos[1][:16, :20]
    kinds = pooled(photo)
    blocks = photo.reshape(8, 2, 10, 2, 3)
    np.testing.assert_array_equal(kinds["max 2×2"], blocks.max((1, 3)))
    np.testing.assert_allclose(kinds["average 2×2"], blocks.mean((1, 3)), rtol=1e-5)
    np.testing.assert_array_equal(kinds["depth max of R, G, B"], photo.max(-1, keepdims=True))
    np.testing.assert_allclose(kinds["global average"][5, 7], photo.mean((0, 1)), rtol=1e-5)


def test_pooling_forgives_a_shift_by_one_and_half_of_a_shift_by_two():
    a, b, c = images = shifted_strokes()
    np.testing.assert_array_equal(b[:, 1:], a[:, :-1])
    np.testing.assert_array_equal(c[:, 2:], a[:, :-2])
    assert a.sum() == b.sum() == c.sum() == 8
    assert equal_to_first(images)[1] < 1
    np.testing.assert_array_equal(equal_to_first(max_pool(images, 2)), [1, 1, 0.5])


def test_depth_max_pooling_makes_the_response_invariant_to_rotation():
    images, maps, deep = rotation_maps(ANGLES, 12)
    np.testing.assert_array_equal(images[0, 5:-5, 5:-5], digit())
    np.testing.assert_array_equal(deep[..., 0], np.asarray(maps).max(-1))
    # At the copies' own angles each digit equals one of the filters.
    own = ANGLES % 30 == 0
    np.testing.assert_array_equal(np.asarray(maps)[own].max((1, 2)).argmax(-1), np.arange(12))
    assert weakest_peak(deep[own]) > 0.9  # not 1: resampling blurs digits that are not rotated by multiples of 90°
    assert weakest_peak(deep) > 0.8
    assert weakest_peak(maps[..., :1]) < 0.65


def test_augmented_versions_differ_and_follow_the_seed(photos):
    config = settings.change(Config(), samples=3)
    versions = augmented(config, jax.random.key(0), photos[1])
    assert versions.shape == (3, *photos[1].shape)
    assert len(np.unique(np.asarray(versions).reshape(3, -1), axis=0)) == 3
    np.testing.assert_array_equal(versions, augmented(config, jax.random.key(0), photos[1]))
    assert not np.array_equal(versions, augmented(config, jax.random.key(1), photos[1]))


def test_main_leaves_its_files(tmp_path):
    run_dir = tmp_path / "run"
    summary = main(settings.change(Config(), run_dir=run_dir, samples=2, smoke=True))
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    assert json.loads((run_dir / "config.json").read_text())["samples"] == 2
    assert summary["translation/equal_b"] == 1.0
    assert summary["rotation/depth_max"] > summary["rotation/one_filter"]
    names = ("filters", "lines", "pooling", "translation", "rotation", "augmentation")
    assert {path.name for path in run_dir.iterdir()} == {
        "summary.json",
        "config.json",
        ".lock",
        *(f"{name}.png" for name in names),
    }
    for name in names:
        path = run_dir / f"{name}.png"
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 2, name
        assert path.stat().st_size < 300_000, name


def test_figures_are_flat_numbers(photos):
    values = figures(Config(), photos)
    np.testing.assert_allclose(values["global_average/china_red"], photos[0, ..., 0].mean(), rtol=1e-5)
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("change", [{"copies": 0}, {"samples": 0}, {"zoom": 1.0}])
def test_impossible_values_are_refused(change):
    with pytest.raises(UserError):
        main(settings.change(Config(), **change))


@pytest.mark.exhaustive
def test_an_error_is_one_line_and_a_status(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, SCRIPT, "--smoke", "--run-dir", tmp_path / "file"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ")
