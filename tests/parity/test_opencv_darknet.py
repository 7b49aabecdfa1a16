"""Darknet's networks against OpenCV's DNN module: raw outputs, detections, and AP by pycocotools on COCO photos."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from darknet_files import CFG, randomized, write_weights
from test_coco import NAMES, pycocotools

from cnnjax import models, weights
from cnnjax.data import preparation
from cnnjax.metrics import detection
from cnnjax.models.detection import darknet
from cnnjax.ops import nms

SIZE = 320
# Names of classes in Darknet's coco.names → COCO's.
ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


def last_convolutions(cfg, path, count):
    """OpenCV's network, and its layers before the detection heads."""
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(path))
    names = net.getLayerNames()
    heads = [i for i, name in enumerate(names) if name.startswith(("yolo", "region", "detection"))]
    before = [next(name for name in reversed(names[:i]) if name.startswith("conv")) for i in heads]
    assert len(before) == count
    return net, before


@pytest.mark.parametrize("name", sorted(CFG))
def test_yolo_equals_opencv_with_random_weights(name, tmp_path):
    size = 224 if name == "yolov3" else 256
    model = models.create(name)
    shape = (1, size, size, 3)
    variables = randomized(jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape)))
    cfg, path = (
        tmp_path / f"{name}.cfg",
        tmp_path / f"random_{name}.weights",
    )  # a published name would want the published file
    cfg.write_text(CFG[name](size))
    write_weights(path, model, variables)
    images = np.random.default_rng(0).random(shape, np.float32)

    ours = jax.jit(lambda v, x: model.apply(v, x)[0])(weights.load(path, model), images)
    described, loaded = darknet.load(cfg, path)
    by_cfg = jax.jit(lambda v, x: described.apply(v, x)[0])(loaded, images)
    net, before = last_convolutions(cfg, path, len(ours))
    net.setInput(images.transpose(0, 3, 1, 2))
    for raw, same, theirs in zip(ours, by_cfg, net.forward(before), strict=True):
        theirs = theirs.transpose(0, 2, 3, 1)
        assert np.abs(theirs).max() > 0.5  # such values are not all near zero
        np.testing.assert_allclose(raw, theirs, atol=1e-3)
        np.testing.assert_allclose(same, raw, atol=1e-5)


def test_yolov2_scores_and_boxes_equal_opencv(tmp_path):
    """The region layer: offsets, anchors in cells, softmax times objectness."""
    model = models.create("yolov2_voc")
    variables = randomized(jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 224, 224, 3))))
    cfg, path = tmp_path / "v2.cfg", tmp_path / "v2.weights"
    cfg.write_text(CFG["yolov2_voc"](224))
    write_weights(path, model, variables, version=(0, 1, 0))
    images = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    described, loaded = darknet.load(cfg, path)
    boxes, scores = described.decode(described.apply(loaded, images)[0], (224, 224))
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(path))
    net.setInput(images.transpose(0, 3, 1, 2))
    theirs = net.forward(net.getUnconnectedOutLayersNames()[0])
    shown = theirs[:, 5:] > 0  # theirs are 0 below a threshold
    assert shown.sum() > 100
    np.testing.assert_allclose(np.asarray(scores[0])[shown], theirs[:, 5:][shown], atol=1e-5)
    corners = theirs[:, :4] - [0.5, 0.5, 0, 0] * theirs[:, [2, 3, 2, 3]]
    np.testing.assert_allclose(xywh(boxes[0]) / 224, corners, rtol=1e-4, atol=1e-4)


def xywh(boxes):
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


@pytest.fixture(scope="module")
def fastest(shared):
    folder = shared / "weights" / "yolo_fastest"
    cfg, path = folder / "yolo-fastest-1.1-xl.cfg", folder / "yolo-fastest-1.1-xl.weights"
    model, variables = darknet.load(cfg, path)
    run = jax.jit(lambda v, x: model.apply(v, x)[0])
    found = jax.jit(
        lambda v, x: jax.tree.map(
            lambda y: y[0],
            jax.vmap(lambda b, s: nms.detections(b, s, score_threshold=0.001, iou_threshold=0.45, max_outputs=1000))(
                *model.decode(run(v, x), (SIZE, SIZE))
            ),
        )
    )
    return cfg, path, variables, run, found


def blob(path):
    image = cv2.imread(str(path))
    return cv2.dnn.blobFromImage(image, 1 / 255, (SIZE, SIZE), swapRB=True), image.shape[:2]


def test_yolo_fastest_raw_outputs_equal_opencv_on_photos(fastest, shared):
    cfg, path, variables, run, _ = fastest
    net, before = last_convolutions(cfg, path, 2)
    photos = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:20]
    assert len(photos) == 20
    for photo in photos:
        pixels, _ = blob(photo)
        net.setInput(pixels)
        for raw, theirs in zip(run(variables, pixels.transpose(0, 2, 3, 1)), net.forward(before), strict=True):
            np.testing.assert_allclose(raw, theirs.transpose(0, 2, 3, 1), atol=1e-3)


def test_dog_jpg_has_the_known_four_boxes(fastest, shared):
    *_, variables, _, found = fastest
    names = (shared / "weights" / "yolo_fastest" / "coco.names").read_text().split("\n")
    pixels, (height, width) = blob(shared / "weights" / "yolo_fastest" / "dog.jpg")
    boxes, scores, labels, valid = map(np.asarray, found(variables, pixels.transpose(0, 2, 3, 1)))
    kept = valid & (scores > 0.3)
    assert [names[label] for label in labels[kept]] == ["dog", "bicycle", "car", "truck"]
    np.testing.assert_allclose(scores[kept], [0.9584, 0.8939, 0.8410, 0.4371], atol=0.01)
    expected = [
        [113.9, 188.5, 272.0, 347.1],
        [113.0, 126.7, 460.4, 370.7],
        [449.8, 78.2, 234.8, 84.3],
        [450.7, 80.3, 225.0, 83.0],
    ]
    np.testing.assert_allclose(xywh(boxes[kept]) * np.array([width, height] * 2) / SIZE, expected, atol=1)


def test_ap_on_coco_photos_by_our_metric_and_by_pycocotools(fastest, shared):
    *_, variables, _, found = fastest
    folder = shared / "data" / "coco_mini"
    truth = json.loads((folder / "annotations" / "boxes_val2017.json").read_text())
    names = (shared / "weights" / "yolo_fastest" / "coco.names").read_text().split("\n")
    place = {each["name"]: each["id"] for each in truth["categories"]}
    ids = np.array([place[ALIASES.get(name, name)] for name in names if name])
    truths, predictions = [], []
    for image in truth["images"]:
        own = [each for each in truth["annotations"] if each["image_id"] == image["id"]]
        corners = np.array([each["bbox"] for each in own]).reshape(-1, 4)
        truths.append(
            {
                "boxes": np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1),
                "labels": np.array([each["category_id"] for each in own], int),
                "crowd": np.array([each.get("iscrowd", 0) for each in own], bool),
                "area": np.array([each["area"] for each in own], float),
            }
        )
        pixels, (height, width) = blob(folder / "val2017" / image["file_name"])
        boxes, scores, labels, valid = map(np.asarray, found(variables, pixels.transpose(0, 2, 3, 1)))
        scale = np.array([width, height] * 2) / SIZE
        predictions.append({"boxes": boxes[valid] * scale, "labels": ids[labels[valid]], "scores": scores[valid]})
    ours, theirs = detection.coco_map(truths, predictions), pycocotools(truths, predictions)
    print(ours)
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    assert ours["ap"] == pytest.approx(0.222, abs=0.005)
    assert ours["ap50"] == pytest.approx(0.454, abs=0.005)


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_suppression_keeps_opencvs_boxes(iou_threshold):
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 400, (2000, 2)), rng.uniform(10, 120, (2000, 2))
    boxes, scores = np.concatenate([corner, corner + side], 1).astype(np.float32), rng.random(2000).astype(np.float32)
    expected = np.ravel(cv2.dnn.NMSBoxes(xywh(boxes), scores, 0.0, iou_threshold))
    indices, valid = nms.nms(boxes, scores, iou_threshold=iou_threshold, max_outputs=2000)
    assert indices[valid].tolist() == expected.tolist()


@pytest.mark.parametrize("size", [(320, 320), (500, 90), (33, 700)])
def test_linear_resampling_is_opencvs(size):
    image = np.random.default_rng(0).integers(0, 256, (217, 301, 3)).astype(np.uint8)
    ours = preparation.moved(image, preparation.Geometry(size, size, resample="linear"))
    theirs = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # OpenCV computes with weights of 11 bits
