"""Metrics of segmentation: by hand, against scikit-learn and SciPy, and the same however images are shared out."""

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import confusion_matrix, jaccard_score

from cnnjax.metrics import segmentation

CLASSES = ("road", "sky", "tree", "car")


def draw(seed, n=6, size=(40, 50), classes=4):
    """Labels and predictions of blobs, some pixels without a class."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(n, *size, classes)), (0, 4, 4, 0))
    labels = noise.argmax(-1)
    predicted = (noise + 0.02 * rng.normal(size=noise.shape)).argmax(-1)
    labels[:, :4] = 255
    return predicted, labels


def totals(predicted, labels, classes=4):
    count = jax.jit(lambda p, t: segmentation.confusion(p, t, classes))
    edges = jax.jit(lambda p, t: segmentation.boundary(p, t, classes))
    each = [{"confusion": count(p, t), **edges(p, t)} for p, t in zip(predicted, labels, strict=True)]
    return {name: sum(np.asarray(one[name], np.int64) for one in each) for name in each[0]}


def test_figures_by_hand():
    matrix = np.array([[3, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = segmentation.figures({"confusion": matrix}, CLASSES)
    assert found["iou/road"] == pytest.approx(3 / 5)
    assert found["iou/sky"] == pytest.approx(2 / 4)
    assert found["iou/tree"] == 0
    assert "iou/car" not in found  # neither there nor predicted
    assert found["miou"] == pytest.approx((3 / 5 + 2 / 4 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(5 / 8)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert found["frequency_iou"] == pytest.approx((4 * 3 / 5 + 2 * 2 / 4) / 8)
    nothing = segmentation.figures({"confusion": np.zeros((4, 4))}, CLASSES)
    assert nothing["miou"] == nothing["pixel_accuracy"] == 0


def test_counts_are_scikit_learns():
    predicted, labels = draw(0)
    found = totals(predicted, labels)
    counted = labels != 255
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(labels[counted], predicted[counted]))
    scores = jaccard_score(labels[counted], predicted[counted], average=None)
    figures = segmentation.figures(found, CLASSES)
    np.testing.assert_allclose([figures[f"iou/{name}"] for name in CLASSES], scores, rtol=1e-12)


def test_padding_and_order_change_nothing():
    predicted, labels = draw(1)
    whole = totals(predicted, labels)
    padded = totals(
        *(np.pad(x, ((0, 0), (0, 7), (0, 3)), constant_values=v) for x, v in ((predicted, 0), (labels, 255)))
    )
    np.testing.assert_array_equal(padded["confusion"], whole["confusion"])
    backwards = totals(predicted[::-1], labels[::-1])
    for name, x in whole.items():
        np.testing.assert_array_equal(backwards[name], x)


def test_boundaries_are_those_of_distances():
    predicted, labels = draw(2, n=1)
    found = segmentation.boundary(predicted[0], labels[0], 4)
    radius = int(np.ceil(0.0075 * np.hypot(40, 50)))
    masks = {}
    for name, x in (("predicted", np.where(labels[0] == 255, -1, predicted[0])), ("true", labels[0])):
        x = np.where(x == 255, -1, x)
        padded = np.pad(x, 1, mode="edge")
        others = [padded[1 + i : 41 + i, 1 + j : 51 + j] for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        edge = np.any([other != x for other in others], axis=0)
        masks[name] = [edge & (x == k) for k in range(4)]
    for k in range(4):
        far = {name: ndimage.distance_transform_edt(~mask[k]) for name, mask in masks.items()}
        assert found["predicted"][k] == masks["predicted"][k].sum()
        assert found["true"][k] == masks["true"][k].sum()
        assert found["precise"][k] == (masks["predicted"][k] & (far["true"] <= radius)).sum()
        assert found["recalled"][k] == (masks["true"][k] & (far["predicted"] <= radius)).sum()


def test_boundary_f1_of_equal_and_shifted_squares():
    labels = np.zeros((100, 100), int)
    labels[30:60, 30:60] = 1
    equal = segmentation.figures(totals([labels], [labels], 2), CLASSES[:2])
    assert equal["boundary_f1"] == pytest.approx(1)
    far = np.roll(labels, 20, axis=(0, 1))  # tolerance is 2 pixels
    assert segmentation.figures(totals([far], [labels], 2), CLASSES[:2])["boundary_f1"] < 0.2


def test_median_frequency_by_hand():
    # Frequencies 0.5, 0.1 and 0.2 in the images that show each class; the last class has no pixel.
    weights = segmentation.median_frequency(np.array([50, 10, 10, 0]), np.array([100, 100, 50, 0]))
    np.testing.assert_allclose(weights, [0.4, 2, 1, 0], rtol=1e-6)


def test_boundaries_of_more_classes_than_a_word_has_bits():
    predicted, labels = draw(3, n=1)
    few, many = (
        segmentation.boundary(predicted[0] * k, np.where(labels[0] == 255, 255, labels[0] * k), c)
        for k, c in ((1, 4), (20, 64))
    )
    for name, counts in few.items():
        np.testing.assert_array_equal(many[name][::20], counts)
        assert many[name].sum() == counts.sum()
