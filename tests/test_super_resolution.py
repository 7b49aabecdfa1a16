"""Super-resolution: PSNR and SSIM by hand, bicubic interpolation as Pillow's, EDSR as published."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnnjax import models
from cnnjax.metrics import restoration
from cnnjax.ops import resize

X = np.random.default_rng(0).uniform(0, 255, (20, 24)).astype(np.float32)


def test_psnr_by_hand():
    assert restoration.psnr(X + 5, X) == pytest.approx(20 * math.log10(255 / 5), rel=1e-5)
    assert restoration.psnr(X, X) == np.inf
    spoilt = X.copy()
    spoilt[0] += 100
    assert restoration.psnr(spoilt, X, border=1) == np.inf
    assert restoration.psnr(X / 255 + 0.1, X / 255, peak=1.0) == pytest.approx(20, rel=1e-4)


def ssim_by_hand(found, true, peak):
    values = []
    for i in range(true.shape[0] - 6):
        for j in range(true.shape[1] - 6):
            x, y = (each[i : i + 7, j : j + 7].astype(np.float64).ravel() for each in (found, true))
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            covariance = np.cov(x, y)
            above = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
            values.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))
    return np.mean(values)


def test_ssim_by_hand():
    noisy = X + np.random.default_rng(1).normal(size=X.shape).astype(np.float32) * 30
    assert restoration.ssim(noisy, X) == pytest.approx(ssim_by_hand(noisy, X, 255), abs=1e-5)
    assert restoration.ssim(noisy / 255, X / 255, peak=1.0) == pytest.approx(ssim_by_hand(noisy, X, 255), abs=1e-5)
    assert restoration.ssim(X, X) == pytest.approx(1, abs=1e-6)
    flat = np.full((20, 24), 200, np.float32)
    assert restoration.ssim(flat, flat) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="expected images of at least 15 pixels on each side"):
        restoration.ssim(X[:12], X[:12], border=4)


def test_luminance_is_that_of_bt601():
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.uint8)
    np.testing.assert_allclose(restoration.luminance(colors), [16, 235, 16 + 65.481], rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_pillows(factor):
    size = (24 * factor, 20 * factor)
    theirs = np.asarray(Image.fromarray(X, "F").resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_allclose(resize.bicubic(X[None, ..., None], size[::-1])[0, ..., 0], theirs, atol=2e-3)


def test_edsr_starts_as_bicubic_interpolation_and_has_the_papers_parameters():
    model = models.create("edsr")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == 1_369_859
    images = np.random.default_rng(0).random((2, 11, 14, 3)).astype(np.float32)
    for factor in (2, 4):
        small = models.create("edsr", factor=factor, blocks=1, features=4)
        found, endpoints = small.apply(small.init(jax.random.key(0), images), images)
        assert found.shape == (2, 11 * factor, 14 * factor, 3)
        np.testing.assert_allclose(found, resize.bicubic(images, found.shape[1:3]), atol=1e-6)
        assert endpoints["body"].shape == (2, 11, 14, 4)
    with pytest.raises(ValueError, match="expected a factor of 2, 4 or 8, got 3"):
        models.create("edsr", factor=3).init(jax.random.key(0), images)
