"""ops.anchors: grids by hand, SSD's counts, k-means; tests/parity compares default boxes with torchvision's."""

import numpy as np
import pytest

from cnnjax.ops import anchors, boxes
from cnnjax.types import UserError


def test_a_grid_by_hand():
    found = anchors.grid((1, 2), (8, 10), np.array([[2, 4], [6, 6]]))
    want = [[4, 2, 6, 6], [2, 1, 8, 7], [14, 2, 16, 6], [12, 1, 18, 7]]
    np.testing.assert_array_equal(found, want)
    assert found.dtype == np.float32
    corner = anchors.grid((1, 2), (8, 10), np.array([[2, 4]]), offset=(0, 0))
    np.testing.assert_array_equal(corner, [[-1, -2, 1, 2], [9, -2, 11, 2]])


@pytest.mark.parametrize(
    ("spec", "size", "maps", "count"),
    [(anchors.SSD300, 300, (38, 19, 10, 5, 3, 1), 8732), (anchors.SSD512, 512, (64, 32, 16, 8, 4, 2, 1), 24564)],
)
def test_the_papers_numbers_of_default_boxes(spec, size, maps, count):
    found = anchors.default_boxes(spec, (size, size, 3), [(side, side) for side in maps])
    assert found.shape == (count, 4)
    assert count == sum(side**2 * each for side, each in zip(maps, spec.per_cell, strict=True))
    sides = found[:, 2:] - found[:, :2]
    assert sides.max() <= size * (1 + 1e-6)
    assert sides.min() == pytest.approx(size * spec.scales[0] / 2**0.5, rel=1e-5)


def test_default_boxes_by_hand():
    """Scales of 1/4 and 1: squares of 1/4 and 1/2, and of ratio 4 boxes 1/2 × 1/8, in each of two cells."""
    spec = anchors.DefaultBoxes(ratios=((4,),), scales=(0.25, 1.0))
    found = boxes.xyxy_to_cxcywh(anchors.default_boxes(spec, (80, 160), [(1, 2)]))
    sizes = [(40, 20), (80, 40), (80, 10), (20, 40)]
    np.testing.assert_allclose(found, [[x, 40, *size] for x in (40, 120) for size in sizes], atol=1e-5)


def test_even_scales_by_the_papers_formula():
    spec = anchors.even_default_boxes(6)
    np.testing.assert_allclose(spec.scales, [0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1.0])
    assert spec.per_cell == anchors.SSD300.per_cell
    with pytest.raises(ValueError, match="at least 2 feature maps, got 1"):
        anchors.even_default_boxes(1)


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match=r"each of 2 feature maps and one more.*got 7 scales and 6 tuples"):
        anchors.default_boxes(anchors.SSD300, (300, 300), [(38, 38), (19, 19)])


CENTERS = np.array([[10, 12], [40, 20], [30, 90], [150, 160]], float)


def clustered(n=400):
    rng = np.random.default_rng(0)
    return CENTERS[rng.integers(len(CENTERS), size=n)] * rng.uniform(0.95, 1.05, (n, 2))


def test_kmeans_finds_clusters():
    for seed in range(5):
        found = anchors.kmeans(clustered(), 4, np.random.default_rng(seed))
        np.testing.assert_allclose(found.sizes, CENTERS, rtol=0.02)
        assert found.average_iou == pytest.approx(anchors.average_iou(clustered(), found.sizes), abs=1e-6)
        assert found.average_iou > 0.94


def test_more_anchors_overlap_more_and_any_start_beats_boxes_drawn_at_random():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(3.5, 1, (1000, 2)))
    overlaps = [anchors.kmeans(sizes, k, np.random.default_rng(1)).average_iou for k in (1, 3, 5, 9)]
    assert overlaps == sorted(overlaps)
    drawn = [anchors.average_iou(sizes, sizes[rng.choice(len(sizes), 5)]) for _ in range(20)]
    assert overlaps[2] > max(drawn)


def test_the_distance_is_the_overlap_and_not_the_pixels():
    """The sizes 400 and 430 are farther, by pixels, apart than 10 and 20."""
    sizes = np.repeat([[10.0, 10], [20, 20], [400, 400], [430, 430]], [50, 50, 30, 60], axis=0)
    found = anchors.kmeans(sizes, 3, np.random.default_rng(0)).sizes
    np.testing.assert_array_equal(found, [[10, 10], [20, 20], [430, 430]])


def test_the_same_generator_gives_the_same_anchors():
    sizes = np.random.default_rng(3).uniform(5, 200, (300, 2))
    one, two, other = (anchors.kmeans(sizes, 5, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.sizes, two.sizes)
    assert (one.sizes != other.sizes).any()


def test_average_iou_by_hand():
    """One box is an anchor, the other half of it: (1 + 1/2) / 2."""
    assert anchors.average_iou(np.array([[4, 4], [4, 2]]), np.array([[4, 4], [100, 1]])) == pytest.approx(0.75)


def test_as_many_anchors_as_sizes_fit_perfectly():
    sizes = np.array([[3, 4], [5, 1], [3, 4], [8, 8]])
    found = anchors.kmeans(sizes, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(found.sizes, [[5, 1], [3, 4], [8, 8]])
    assert found.average_iou == 1


@pytest.mark.parametrize(
    ("sizes", "k", "message"),
    [
        ([[3, 4], [3, 4]], 2, "2 anchors from 1 different sizes of boxes: from 1 to 1 are possible"),
        ([[3, 4]], 0, "0 anchors"),
        ([[3, 4], [0, 4], [1, -1]], 1, "2 of 3 boxes have no area, the first is 0 by 4"),
        ([[3, np.nan]], 1, "the first is 3 by nan"),
        (np.zeros((0, 2)), 1, r"got shape \(0, 2\)"),
        ([[1, 2, 3, 4]], 1, r"got shape \(1, 4\)"),
    ],
)
def test_sizes_that_cannot_be_clustered(sizes, k, message):
    with pytest.raises(UserError, match=message):
        anchors.kmeans(np.array(sizes, float), k, np.random.default_rng(0))
