"""metrics.detection: values by hand; tests/parity compares with pycocotools."""

import numpy as np
import pytest

from cnnjax.metrics import detection
from cnnjax.types import UserError

BOXES = np.array([[0, 0, 10, 10], [20, 20, 60, 60], [100, 0, 300, 200]], float)  # small, medium, large


def truth(boxes=BOXES, labels=(0, 0, 0), **more):
    return {"boxes": boxes, "labels": labels, **more}


def found(boxes, scores, labels=None):
    return {"boxes": boxes, "labels": np.zeros(len(boxes), int) if labels is None else labels, "scores": scores}


def test_all_found_is_one():
    figures = detection.coco_map([truth()], [found(BOXES, [0.3, 0.9, 0.5])])
    assert {name: value for name, value in figures.items() if name != "ar1"} == pytest.approx(
        dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar10", "ar100"), 1), abs=1e-12
    )
    assert figures["ar1"] == pytest.approx(1 / 3)


def test_a_box_with_an_iou_of_one_half_and_more_counts_up_to_it():
    shifted = np.array([[0, 0, 10, 6.3]])  # IoU 0.63: right at 0.50, 0.55 and 0.60
    figures = detection.coco_map([truth(BOXES[:1], [0])], [found(shifted, [1.0])])
    assert figures == pytest.approx(
        {"ap": 0.3, "ap50": 1, "ap75": 0, "ap_small": 0.3, "ar1": 0.3, "ar10": 0.3, "ar100": 0.3}, abs=1e-12
    )


def test_voc_by_hand():
    """Right, wrong, right of three objects: precision 1, 1/2, 2/3 at the recalls 1/3, 1/3, 2/3."""
    boxes = np.array([[0, 0, 10, 10], [400, 400, 410, 410], [20, 20, 60, 60]], float)
    images = [truth()], [found(boxes, [0.9, 0.8, 0.7])]
    assert detection.voc_ap(*images, points=None) == {0: pytest.approx(1 / 3 + 2 / 3 / 3)}
    assert detection.voc_ap(*images, points=11) == {0: pytest.approx((4 * 1 + 3 * 2 / 3) / 11)}


def test_voc_takes_every_detection_and_coco_a_hundred():
    far = np.arange(120)[:, None] * 20 + 500 + np.array([0, 0, 10, 10])
    boxes, scores = np.concatenate([far, BOXES[:1]]), np.linspace(1, 0.1, 121)
    images = [truth(BOXES[:1], [0])], [found(boxes, scores)]
    assert detection.voc_ap(*images, points=None) == {0: pytest.approx(1 / 121)}
    assert detection.coco_map(*images)["ar100"] == 0


def test_an_object_is_found_once_and_a_difficult_one_does_not_count():
    twice = found(BOXES[[0, 0]], [0.9, 0.8])
    assert detection.voc_ap([truth(BOXES[:1], [0])], [twice], points=None) == {0: 1}
    both = found(BOXES[[1, 0]], [0.9, 0.8])
    difficult = truth(BOXES[:2], [0, 0], difficult=[False, True])
    assert detection.voc_ap([difficult], [both], points=None) == {0: 1}
    assert detection.coco_map([difficult], [both])["ap"] == pytest.approx(1)
    assert detection.voc_ap([truth(BOXES[:1], [0], difficult=[True])], [both]) == {}


def test_classes_without_objects_and_nothing_at_all_have_no_figure():
    figures = detection.coco_map([truth(BOXES[:1], [3])], [found(BOXES, [0.9, 0.8, 0.7], [3, 4, 4])])
    assert figures["ap"] == pytest.approx(1)
    assert "ap_large" not in figures
    assert detection.coco_map([truth(np.zeros((0, 4)), [])], [found(np.zeros((0, 4)), [])]) == {}
    assert detection.coco_map([], []) == {}
    assert detection.coco_map([truth()], [found(np.zeros((0, 4)), [])])["ap"] == 0


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (([truth()], []), "1 images with truths, but 0 with predictions"),
        (([truth(labels=[0])], [found(BOXES, [1, 1, 1])]), "truth 0: 3 boxes with 1 labels"),
        (([truth()], [found(BOXES, [1, np.nan, 1])]), "prediction 0: scores must be 3 finite numbers"),
        (([truth()], [found(BOXES * np.inf, [1, 1, 1])]), "prediction 0: .* finite corners"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_does_not_fit_together_is_an_error(images, says):
    with pytest.raises(UserError, match=says):
        detection.coco_map(*images)
