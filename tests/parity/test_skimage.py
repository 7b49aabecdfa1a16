"""SSIM and PSNR against scikit-image, on a photo with noise and blur."""

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage
from sklearn.datasets import load_sample_image

from cnnjax.metrics import restoration


@pytest.mark.parametrize("spoil", ["noise", "blur"])
@pytest.mark.parametrize("size", [(200, 301), (64, 48)])
def test_psnr_and_ssim_are_scikit_images(spoil, size):
    true = np.asarray(restoration.luminance(load_sample_image("china.jpg")[: size[0], : size[1]]))
    noise = np.random.default_rng(0).normal(size=true.shape) * 9
    found = (true + noise if spoil == "noise" else ndimage.gaussian_filter(true, 1.5)).astype(np.float32)
    x, y = found.astype(np.float64), true.astype(np.float64)
    similar = skimage.metrics.structural_similarity(x, y, data_range=255)
    assert restoration.ssim(found, true) == pytest.approx(similar, abs=1e-5)
    ratio = skimage.metrics.peak_signal_noise_ratio(y, x, data_range=255)
    assert restoration.psnr(found, true) == pytest.approx(ratio, abs=1e-4)
