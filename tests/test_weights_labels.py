"""ImageNet's classes and the decoding of predictions, compared with Keras and its index."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.types import UserError
from cnnjax.weights.hub.labels import decode_predictions, imagenet_classes, imagenet_index


def test_the_index_is_keras(shared):
    index = json.loads((shared / "data" / "imagenet_class_index.json").read_text())
    assert [list(entry) for entry in imagenet_classes()] == [index[str(i)] for i in range(1000)]


def test_classes_and_index_are_each_others_inverse():
    classes, index = imagenet_classes(), imagenet_index()
    assert len(classes) == len(index) == 1000
    assert [index[wnid] for wnid, _ in classes] == list(range(1000))
    assert [wnid for wnid, _ in classes] == sorted(index)  # published networks have them in the order of their ids
    assert dict(classes)["n02124075"] == "Egyptian_cat"


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("top", [1, 5, 1000])
def test_equals_keras_decode_predictions(kind, top, monkeypatch, shared):
    from keras.src.applications import imagenet_utils

    path = shared / "data" / "imagenet_class_index.json"
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", json.loads(path.read_text()))  # Keras would download it
    scores = np.random.default_rng(0).dirichlet(np.ones(1000), 3).astype(np.float32)
    theirs = imagenet_utils.decode_predictions(scores, top)
    assert [[tuple(p) for p in row] for row in decode_predictions(kind(scores), top)] == theirs


def test_scores_are_given_back_as_they_are_and_ties_go_to_the_first_class():
    logits = np.zeros((1, 1000))
    logits[0, 7] = -3
    logits[0, 999] = 12
    (row,) = decode_predictions(logits, 9)
    assert [imagenet_index()[p.wnid] for p in row] == [999, 0, 1, 2, 3, 4, 5, 6, 8]
    assert [p.score for p in row] == [12, *[0] * 8]
    assert decode_predictions(np.zeros((0, 1000))) == []


@pytest.mark.parametrize(
    ("scores", "top", "says"),
    [
        (np.zeros((2, 999)), 5, r"\[n, 1000\], got shape \[2, 999\]"),
        (np.zeros(1000), 5, r"got shape \[1000\]"),
        (np.full((1, 1000), np.nan), 5, "expected finite scores"),
        (np.zeros((1, 1000)), 0, r"top must be in 1 … 1000, got 0"),
        (np.zeros((1, 1000)), 1001, "got 1001"),
    ],
)
def test_what_are_no_predictions_is_refused(scores, top, says):
    with pytest.raises(UserError, match=says):
        decode_predictions(scores, top)
