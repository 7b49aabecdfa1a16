"""ops.nms: a plain loop over random boxes, values by hand, ties, padding, jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops import boxes, nms

# Two boxes with an IoU of 1/3, and one apart.
THREE = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)


def random_boxes(rng, n, side=80):
    corner, size = rng.random((n, 2)) * 300, rng.random((n, 2)) * side + 5
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def plainly(found, scores, threshold, labels=None):
    """Places that greedy suppression leaves, the best first, by a loop over all pairs."""
    overlap = np.array(boxes.iou(found, found))
    if labels is not None:
        overlap[labels[:, None] != labels] = 0
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        if all(overlap[place, other] <= threshold for other in kept):
            kept.append(int(place))
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("classes", [None, 3])
def test_greedy_is_a_plain_loop_over_all_pairs(threshold, classes):
    rng = np.random.default_rng(0)
    found, scores = random_boxes(rng, 200), rng.random(200).round(2).astype(np.float32)  # some scores are equal
    labels = None if classes is None else rng.integers(0, classes, 200)
    expected = plainly(found, scores, threshold, labels)
    indices, valid = nms.nms(found, scores, iou_threshold=threshold, max_outputs=220, labels=labels)
    assert indices[valid].tolist() == expected
    assert valid.tolist() == [True] * len(expected) + [False] * (220 - len(expected))
    few, _ = nms.nms(found, scores, iou_threshold=threshold, max_outputs=9, labels=labels)
    assert few.tolist() == expected[:9]


@pytest.mark.parametrize("side", [10, 200])
def test_many_boxes_are_taken_in_blocks(side):
    rng = np.random.default_rng(2)
    found, scores = random_boxes(rng, 1000, side), rng.random(1000).round(3).astype(np.float32)
    labels = rng.integers(0, 2, 1000)
    expected = plainly(found, scores, 0.3, labels)
    indices, valid = nms.nms(found, scores, iou_threshold=0.3, max_outputs=1000, labels=labels)
    assert indices[valid].tolist() == expected
    assert len(expected) > nms.BLOCK or side > 10
    few, valid = nms.nms(found, scores, iou_threshold=0.3, max_outputs=300, labels=labels)
    assert few[valid].tolist() == expected[:300]


def test_detections_of_all_classes_by_hand():
    boxes, scores = (
        np.concatenate([THREE, THREE[:1] + 1]),
        np.array([[0.9, 0.6], [0.8, 0.05], [0.0, 0.7], [0.85, 0.65]]),
    )
    found = nms.detections(boxes, scores, score_threshold=0.1, iou_threshold=0.5, max_outputs=6)
    assert found.valid.tolist() == [True] * 4 + [False] * 2
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7, 0.65, 0, 0], rtol=1e-6)
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(found.boxes[:4], boxes[[0, 1, 2, 3]])
    fewer = nms.detections(boxes, scores, score_threshold=0.1, iou_threshold=0.5, max_outputs=6, candidates=2)
    assert fewer.valid.sum() == 1  # the second candidate overlaps the first


def test_padding_is_never_taken_and_nothing_may_be_there():
    rng = np.random.default_rng(0)
    found, scores = random_boxes(rng, 5, 5), np.array([0.1, -np.inf, 0.3, -np.inf, 0.2], np.float32)
    indices, valid = nms.nms(found, scores, iou_threshold=0.5, max_outputs=4)
    assert (indices.tolist(), valid.tolist()) == ([2, 4, 0, 0], [True, True, True, False])
    _, valid = nms.nms(np.zeros((0, 4)), np.zeros(0), iou_threshold=0.5, max_outputs=2)
    assert valid.tolist() == [False, False]


def test_a_batch_by_vmap_is_each_image_alone():
    rng = np.random.default_rng(1)
    batch, scores = np.stack([random_boxes(rng, 60) for _ in range(16)]), rng.random((16, 60)).astype(np.float32)

    def one(found, scores):
        return nms.nms(found, scores, iou_threshold=0.4, max_outputs=30)

    indices, valid = jax.vmap(one)(batch, scores)
    for i in range(16):
        alone = one(batch[i], scores[i])
        np.testing.assert_array_equal(indices[i], alone.indices)
        np.testing.assert_array_equal(valid[i], alone.valid)


def test_soft_suppression_by_hand():
    indices, valid, scores = nms.soft_nms(THREE, SCORES, sigma=0.5, max_outputs=4)
    assert (indices.tolist(), valid.tolist()) == ([0, 2, 1, 0], [True, True, True, False])
    np.testing.assert_allclose(scores[:3], [0.9, 0.7, 0.8 * np.exp(-((1 / 3) ** 2) / 0.5)], rtol=1e-6)
    _, valid, _ = nms.soft_nms(THREE, SCORES, sigma=0.5, max_outputs=4, score_threshold=0.65)
    assert valid.tolist() == [True, True, False, False]
    _, _, scores = nms.soft_nms(THREE, SCORES, sigma=0.5, max_outputs=3, labels=jnp.array([0, 1, 0]))
    np.testing.assert_allclose(scores, SCORES, rtol=1e-6)


def test_matrix_suppression_by_hand():
    four, scores = np.concatenate([THREE, [[10, 0, 20, 10]]]).astype(np.float32), np.array([0.9, 0.8, 0.7, 0.6])
    kept = nms.matrix_nms(four, scores, sigma=2.0, max_outputs=5)
    assert kept.valid.tolist() == [True] * 4 + [False]
    # The fourth overlaps the second alone, which the first suppresses just as much: it keeps its score.
    second = 0.8 * np.exp(-2 * (1 / 3) ** 2)
    assert kept.indices[:4].tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(kept.scores[:4], [0.9, 0.7, second, 0.6], rtol=1e-5)
