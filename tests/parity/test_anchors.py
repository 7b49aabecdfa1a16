"""Default boxes and matching of SSD against torchvision's."""

import jax
import numpy as np
import pytest
import torch

from cnnjax.ops import anchors, matching

MAPS = {
    "ssd300": (anchors.SSD300, (300, 300), (38, 19, 10, 5, 3, 1)),
    "ssd512": (anchors.SSD512, (512, 512), (64, 32, 16, 8, 4, 2, 1)),
    "even": (anchors.even_default_boxes(4), (200, 320), ((13, 20), (7, 10), (4, 5), (2, 3))),
}


@pytest.mark.parametrize("name", MAPS)
def test_default_boxes(torchvision, name):
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    spec, shape, maps = MAPS[name]
    maps = [(side, side) if isinstance(side, int) else side for side in maps]
    generator = DefaultBoxGenerator(list(spec.ratios), scales=list(spec.scales), steps=spec.steps)
    images = ImageList(torch.zeros(1, 3, *shape), [shape])
    (want,) = generator(images, [torch.zeros(1, 1, *each) for each in maps])
    assert tuple(generator.num_anchors_per_location()) == spec.per_cell
    # torchvision computes shares of the image in float32, whose last digit is 6e-5 pixels.
    np.testing.assert_allclose(anchors.default_boxes(spec, shape, maps), want, atol=1e-4, rtol=0)


def test_even_scales(torchvision):
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    want = DefaultBoxGenerator([[2]] * 5, min_ratio=0.2, max_ratio=0.95).scales
    np.testing.assert_allclose(anchors.even_default_boxes(5, 0.2, 0.95).scales, want)


def test_matching_of_ssd(torchvision):
    from torchvision.models.detection._utils import SSDMatcher
    from torchvision.ops import box_iou

    rng = np.random.default_rng(0)
    default = anchors.default_boxes(anchors.SSD300, (300, 300), [(side, side) for side in (38, 19, 10, 5, 3, 1)])
    for count in (1, 7, 30):
        truths = np.sort(rng.uniform(0, 300, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        want = SSDMatcher(0.5)(box_iou(torch.from_numpy(truths), torch.from_numpy(default))).numpy()
        padded = np.concatenate([truths, np.zeros((33 - count, 4), np.float32)])
        padded[-1] = truths[0]
        match = jax.jit(matching.match_ssd)(default, padded, np.arange(33) < count)
        np.testing.assert_array_equal(np.where(match.positive, match.truth, -1), want)
        assert match.positive.sum() >= count * 0.9
