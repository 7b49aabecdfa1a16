"""Average precision and masks against pycocotools: crowds, ties, images without objects, every size; real outlines."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnjax.data.formats import masks
from cnnjax.metrics import detection

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def random_images(rng, images, classes, objects, detections):
    """Truths, and predictions most of which are shifted truths; scores and corners of two digits, so that some tie."""
    truths, predictions = [], []
    for _ in range(images):
        k, d = rng.integers(0, objects), rng.integers(0, detections)
        corner, side = rng.random((k, 2)) * 400, np.exp(rng.normal(3.5, 1, (k, 2)))
        boxes, labels = np.concatenate([corner, corner + side], 1).round(2), rng.integers(1, classes + 1, k)
        crowd, area = rng.random(k) < 0.1, side.prod(1) * rng.uniform(0.5, 1, k)
        truths.append({"boxes": boxes, "labels": labels, "crowd": crowd, "area": area})
        near = rng.integers(0, k, d if k else 0)
        found = boxes[near] + rng.normal(0, 4, (len(near), 4))
        found = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:]) + 1], 1)
        theirs = np.where(rng.random(len(near)) < 0.8, labels[near], rng.integers(1, classes + 1, len(near)))
        predictions.append({"boxes": found.round(2), "labels": theirs, "scores": rng.random(len(near)).round(2)})
    return truths, predictions


def entries(images):
    """COCO's entries of boxes: image, category and xywh, and the other fields of each box."""
    for i, image in enumerate(images):
        for j, (box, label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            yield {"image_id": i, "category_id": int(label), "bbox": xywh}, {name: image[name][j] for name in image}


def pycocotools(truths, predictions):
    """The figures by pycocotools, -1 where there are no objects."""
    annotations = [
        {**entry, "id": i, "iscrowd": int(more["crowd"]), "area": float(more["area"])}
        for i, (entry, more) in enumerate(entries(truths), 1)
    ]
    results = [{**entry, "score": float(more["scores"])} for entry, more in entries(predictions)]
    labels = sorted({int(label) for image in (*truths, *predictions) for label in image["labels"]})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in labels],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=False))


@pytest.mark.parametrize(
    "size", [(1, 2, 12, 30), (20, 5, 12, 30), (200, 5, 12, 30), (60, 3, 30, 300), (99, 80, 15, 99)]
)
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_pycocotools(seed, size):
    truths, predictions = random_images(np.random.default_rng(seed), *size)
    found, expected = detection.coco_map(truths, predictions), pycocotools(truths, predictions)
    assert set(found) == {name for name, value in expected.items() if value >= 0}
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-12), name


def test_masks_are_those_of_pycocotools(shared):
    """Polygons and run-length codes of 200 photos; random polygons that cross themselves and leave the image."""
    compared = 0
    for part in ("train2017", "val2017"):
        coco = COCO(shared / "data" / "coco_mini" / "annotations" / f"instances_{part}.json")
        for each in coco.anns.values():
            image = coco.imgs[each["image_id"]]
            shape = masks.from_coco(each["segmentation"])
            found = masks.rasterize(shape, image["height"], image["width"])
            np.testing.assert_array_equal(found, coco.annToMask(each))
            compared += 1
    assert compared == 1458
    rng = np.random.default_rng(0)
    for digits in (0, 1, 3):
        for _ in range(100):
            height, width = map(int, rng.integers(1, 40, 2))
            # Corners are kept as float32, which decides on which side of a border a corner of 3.1 lies.
            corners = rng.uniform(-5, 45, 2 * rng.integers(3, 9)).round(digits).astype(np.float32).tolist()
            expected = mask.decode(mask.merge(mask.frPyObjects([corners], height, width)))
            np.testing.assert_array_equal(masks.rasterize(masks.from_coco([corners]), height, width), expected)
