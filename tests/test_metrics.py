"""Classification metrics against scikit-learn, and their independence of batches and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from cnnjax.metrics import classification

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, 200)
LOSSES = RNG.uniform(size=200).astype(np.float32)


def test_sums_and_figures_are_scikit_learns():
    figures = classification.figures(classification.sums(LOSSES, LOGITS, LABELS), "test/")
    assert figures["test/accuracy"] == pytest.approx(metrics.accuracy_score(LABELS, LOGITS.argmax(-1)))
    assert figures["test/top5"] == pytest.approx(metrics.top_k_accuracy_score(LABELS, LOGITS, k=5))
    assert figures["test/loss"] == pytest.approx(LOSSES.mean(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_batches_and_filling_do_not_matter(size):
    total = None
    for start in range(0, 200, size):
        rows = np.minimum(np.arange(start, start + size), 199)
        mask = (np.arange(start, start + size) < 200).astype(np.float32)
        losses = np.where(mask > 0, LOSSES[rows], np.inf)  # a row that only fills the batch may have any loss
        part = classification.sums(losses, LOGITS[rows], LABELS[rows], mask)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    whole = classification.sums(LOSSES, LOGITS, LABELS)
    assert total["count"] == 200
    for name in ("correct", "correct_top5"):
        assert total[name] == whole[name]
    np.testing.assert_allclose(total["loss"], whole["loss"], rtol=1e-5)


def test_ties_are_broken_as_argmax_does():
    logits = np.zeros((3, 3), np.float32)
    sums = classification.sums(np.zeros(3), logits, np.arange(3))
    assert sums["correct"] == (logits.argmax(-1) == np.arange(3)).sum() == 1
    assert "correct_top5" not in sums  # with three classes every answer is in the top five


def test_confusion_is_scikit_learns_and_leaves_out_the_filling():
    mask = np.arange(200) < 150
    matrix = classification.confusion(LOGITS, LABELS, mask)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(LABELS[:150], LOGITS[:150].argmax(-1)))


def test_per_class_is_scikit_learns():
    matrix = metrics.confusion_matrix(LABELS, LOGITS.argmax(-1))
    precision, recall, _, support = metrics.precision_recall_fscore_support(LABELS, LOGITS.argmax(-1))
    rows = classification.per_class(matrix, list("abcdefg"))
    np.testing.assert_allclose([row["precision"] for row in rows], precision)
    np.testing.assert_allclose([row["recall"] for row in rows], recall)
    assert [row["images"] for row in rows] == support.tolist()
    assert np.isnan(classification.per_class(np.array([[0, 2], [0, 3]]), "ab")[0]["precision"])


def test_calibration_by_hand():
    """Guo et al. 2017: predictions of confidence 0.9, 0.95 (one right) and 0.55 (right): |0.5 − 0.925|·2/3 + 0.45/3."""
    probabilities = np.array([[0.9, 0.1], [0.05, 0.95], [0.55, 0.45]])
    bins = classification.calibration(probabilities.max(-1), probabilities.argmax(-1) == 0, bins=10)
    assert [b.size for b in bins] == [1, 2]
    np.testing.assert_allclose([(b.confidence, b.accuracy) for b in bins], [(0.55, 1), (0.925, 0.5)])
    np.testing.assert_allclose(classification.calibration_error(bins), (0.45 + 2 * 0.425) / 3)
    assert classification.calibration(np.array([1.0]), np.array([True]))[0].confidence == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: classification.sums(LOSSES[:, None], LOGITS, LABELS),
        lambda: classification.sums(LOSSES, LOGITS, LABELS, np.ones((200, 1))),
        lambda: classification.ranks(LOGITS[0], LABELS),
        lambda: classification.confusion(LOGITS, LABELS[:, None], np.ones(200)),
        lambda: classification.per_class(np.eye(3), "ab"),
        lambda: classification.calibration(LOGITS, LABELS[:-1]),
    ],
)
def test_shapes_that_would_broadcast_to_wrong_figures_are_refused(call):
    with pytest.raises(AssertionError, match="Chex"):
        call()
