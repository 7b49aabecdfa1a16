"""tasks.detect and experiments/detect.py: figures and mistakes by hand; runs on drawn images, served, exported."""

import functools
import json
from typing import Any

import detect as experiment
import evaluate
import export
import jax
import jax.numpy as jnp
import numpy as np
import predict
import pytest
from darknet_files import CFG, randomized, write_weights
from PIL import Image

from cnnjax import pretrained, serving, settings
from cnnjax.data import pipeline, preparation
from cnnjax.models.detection import darknet
from cnnjax.tasks import classify, detect
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")

BOXES = np.array([[10, 10, 30, 30], [50, 20, 90, 60], [0, 0, 0, 0]], np.float32)


def rows(**changes: Any) -> dict[str, np.ndarray]:
    """Rows of two images, in which every object is found."""
    found = {
        "boxes": np.stack([BOXES, BOXES]),
        "labels": np.array([[0, 1, 0], [1, 1, 0]]),
        "scores": np.array([[0.9, 0.8, 0], [0.7, 0.6, 0]]),
        "valid": np.array([[True, True, False]] * 2),
        "true_boxes": np.stack([BOXES, BOXES]),
        "true_labels": np.array([[0, 1, 0], [1, 1, 0]]),
        "true_box_mask": np.array([[True, True, False]] * 2),
        "true_ignore": np.zeros((2, 3), bool),
    }
    return {**found, **changes}


def test_figures_by_hand():
    sums = {"count": np.float64(2)}
    found = detect.figures(sums, rows(), ("a", "b"))
    assert found == {name: pytest.approx(1) for name in ("map50", "ap", "ap50/a", "ap50/b")}
    # One of three objects of b is found as another class, which is a false alarm there, worse than all others.
    labels = np.array([[0, 1, 0], [1, 0, 0]])
    found = detect.figures(sums, rows(labels=labels), ("a", "b"))
    assert found["ap50/a"] == pytest.approx(1)
    assert found["ap50/b"] == pytest.approx(2 / 3)
    assert found["map50"] == pytest.approx(5 / 6)
    assert detect.figures({**sums, "loss": np.float64(6), "box": np.float64(1)}, {}, ("a", "b")) == {
        "loss": 3,
        "box": 0.5,
    }


def test_difficult_objects_count_neither_way():
    ignore = np.array([[False, True, False], [False, False, False]])
    valid = np.array([[True, False, False], [True, True, False]])
    found = detect.figures({"count": np.float64(2)}, rows(true_ignore=ignore, valid=valid), ("a", "b"))
    assert found["map50"] == pytest.approx(1)
    with pytest.raises(UserError, match="every object of the split is difficult or a crowd"):
        detect.figures({"count": np.float64(2)}, rows(true_ignore=np.ones((2, 3), bool)), ("a", "b"))


def test_mistakes_are_misses_and_false_alarms():
    labels, scores = np.array([[0, 1, 0], [1, 0, 0]]), np.array([[0.9, 0.2, 0], [0.7, 0.6, 0]])
    truths, predictions = detect.listed(rows(labels=labels, scores=scores))
    found = detect.mistakes(truths, predictions, ("a", "b"))
    assert [(each.kind, each.image, each.name) for each in found] == [
        ("miss", 0, "b"),
        ("miss", 1, "b"),
        ("false alarm", 1, "a 60%"),
    ]
    picture = found[0].picture(np.zeros((100, 100, 3), np.uint8))
    np.testing.assert_array_equal(picture.boxes, BOXES[1:2])


class BrightestOfQuarter:
    """Detector that finds the brightest pixel of the upper left quarter, of class 0."""

    head, parents = "yolo", ()

    def apply(self, variables: Any, images: Any, train: bool) -> Any:
        return images[:, : images.shape[1] // 2, : images.shape[2] // 2, 0], {}

    def decode(self, outputs: Any, image_shape: tuple[int, int]) -> Any:
        place = outputs.reshape(len(outputs), -1).argmax(1)
        y, x = place // outputs.shape[2], place % outputs.shape[2]
        boxes = jnp.stack([x, y, x + 1, y + 1], 1)[:, None].astype(jnp.float32)
        return boxes, outputs.max((1, 2))[:, None, None]


@pytest.mark.parametrize(("axes", "expected"), [((), {0}), ((2,), {0, 1}), ((1,), {0, 2}), ((1, 2), {0, 1, 2, 3})])
def test_boxes_of_mirror_images_are_where_the_objects_are(axes, expected):
    places = [(3, 5), (2, 33), (25, 8), (30, 38)]  # row and column, one in each quarter of 32 × 40 pixels
    image = np.zeros((1, 32, 40, 3), np.uint8)
    for i, place in enumerate(places):
        image[(0, *place)] = 100 + 20 * i
    task = detect.task(BrightestOfQuarter(), classify.unit, ("a",), mirrored=axes)
    found = {name: np.asarray(x[0]) for name, x in task.predict({}, image).items()}
    boxes = {tuple(box) for box in found["boxes"][found["valid"]].tolist()}
    assert boxes == {(x, y, x + 1, y + 1) for i, (y, x) in enumerate(places) if i in expected}


def test_description_and_picture():
    prediction = {name: rows()[name][0] for name in ("boxes", "labels", "scores", "valid")}
    described = detect.describe(prediction, ("a", "b"), None)["predictions"]
    assert described == [
        {"name": "a", "score": 0.9, "box": [10, 10, 30, 30]},
        {"name": "b", "score": 0.8, "box": [50, 20, 90, 60]},
    ]
    assert detect.describe(prediction, ("a", "b"), 1)["predictions"] == described[:1]
    drawn = detect.draw({"image": np.zeros((100, 100, 3), np.uint8), "boxes": BOXES[:1]}, prediction, ("a", "b"))
    assert drawn.names == ("", "a 90%", "b 80%")
    assert drawn.boxes.shape == (3, 4)


def config_of(folder, rectangles, **values):
    base = {"dataset": str(rectangles), "run_dir": folder, "smoke": True, "in_memory_bytes": 0}
    return settings.change(experiment.Config(), **{**base, **values})


@pytest.fixture(scope="module")
def every_step():
    """Sizes that are drawn anew at each step, as a smoke run has few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "multi_scale", functools.partial(pipeline.multi_scale, every=1))
        yield


@pytest.fixture(scope="module")
def trained(rectangles, tmp_path_factory, one_device_in_module):
    """Folder and summary of a smoke run."""
    folder = tmp_path_factory.mktemp("detect") / "run"
    return folder, experiment.main(config_of(folder, rectangles, phases=MULTI["phases"], mosaic=0.5))


MULTI = {
    "scales": (64, 96),
    "checkpoint_every": 1,
    "mosaic": 0.5,
    "phases": (settings.Phase("all", 2),),
}


@pytest.mark.exhaustive
def test_a_run_leaves_its_figures_and_pictures(trained):
    folder, summary = trained
    assert json.loads((folder / "summary.json").read_text()) == summary
    named = {
        "test/map50",
        "test/ap",
        "test/ap50/blue",
        "test/ap50/red",
        "test/ar100",
        "anchors/average_iou",
        "valid/map50",
    }
    assert named <= summary.keys()
    assert summary["anchors/average_iou"] > 0.8
    pictures = {"boxes.png", "precision_recall.png", "misses.png", "anchors.png", "curves.png", "plan.png"}
    assert pictures <= {path.name for path in folder.iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "box", "objectness", "class"} <= {name.rpartition("/")[2] for line in lines for name in line}


@pytest.mark.exhaustive
def test_a_multi_scale_run_that_is_broken_off_ends_bit_for_bit_the_same(every_step, rectangles, tmp_path, monkeypatch):
    size_at = settings.DetectionImages(scales=MULTI["scales"]).size_at(0)
    assert {size_at(step) for step in range(5)} == {64, 96}
    unbroken, folder = tmp_path / "unbroken", tmp_path / "broken"
    summary = experiment.main(config_of(unbroken, rectangles, **MULTI))
    read = settings.DetectionImages.batches

    def breaking(self, *args):
        batches = read(self, *args)

        def from_step(start):
            for step, batch in enumerate(batches(start), start):
                if step == 3:
                    raise RuntimeError("cut")
                yield batch

        return from_step

    with monkeypatch.context() as patch:
        patch.setattr(settings.DetectionImages, "batches", breaking)
        with pytest.raises(RuntimeError, match="cut"):
            experiment.main(config_of(folder, rectangles, **MULTI))
    assert experiment.main(config_of(folder, rectangles, **MULTI)) == summary
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()

    def metrics(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: x for name, x in line.items() if "per_s" not in name and "time" not in name} for line in lines]

    assert metrics(folder) == metrics(unbroken)


def test_the_network_of_a_run_is_served_and_exported_with_suppression_inside(
    trained, rectangles, tmp_path, monkeypatch, capsys
):
    folder, _ = trained
    monkeypatch.setattr(detect, "SHOWN_SCORE", 0.0)
    served = serving.load(folder)
    photo = rectangles / "JPEGImages" / "3.png"
    fields = {"images": (str(photo),), "run": folder, "run_dir": tmp_path / "predict"}
    predict.main(settings.change(predict.Config(), **fields))
    (image,) = json.loads((tmp_path / "predict" / "predictions.json").read_text())["images"]
    pixels = served.card.pixels([photo])
    found = {name: np.asarray(x[0]) for name, x in jax.jit(served.predict)(served.variables, pixels).items()}
    assert found["boxes"].shape == (100, 4)
    assert found["valid"].sum() == len(image["predictions"])
    scale = np.array([80, 60] * 2) / served.card.image_size  # back to the pixels of the file
    expected = (found["boxes"][found["valid"]] * scale).round(1)
    np.testing.assert_allclose([each["box"] for each in image["predictions"]], expected, atol=0.11)

    summary = export.main(settings.change(export.Config(), run=folder, platforms=("cpu",), run_dir=tmp_path / "export"))
    assert summary["largest_difference"] < 1e-4
    file = tmp_path / "export" / "network.stablehlo"
    monkeypatch.setattr(preparation, "SHOWN_SCORE", 0.0)
    assert preparation.main(file, [str(photo)]) == 0
    objects = json.loads(capsys.readouterr().out.splitlines()[-1])["objects"]
    np.testing.assert_allclose([each["score"] for each in objects], found["scores"][found["valid"]], atol=1e-4)


@pytest.mark.exhaustive
def test_a_run_with_ssds_head_is_scored_and_predicts(rectangles, tmp_path):
    folder = tmp_path / "ssd"
    summary = experiment.main(config_of(folder, rectangles, head="ssd", view="ssd"))
    assert {"test/map50", "valid/map50", "test/ap50/red"} <= summary.keys()
    assert "anchors/average_iou" not in summary
    assert json.loads((folder / "model.json").read_text())["model"] == "ssd"
    config = settings.change(evaluate.Config(), dataset=str(rectangles), run=folder, run_dir=tmp_path / "scored")
    assert evaluate.main(config)["count"] == 60
    served = serving.load(folder)
    assert served.model.extras == ((16, 2),) * 4
    found = jax.jit(served.predict)(served.variables, served.card.pixels([rectangles / "JPEGImages" / "3.png"]))
    assert found["boxes"].shape == (1, 100, 4)


@pytest.mark.exhaustive
def test_a_joint_run_predicts_nodes_of_its_tree(rectangles, tmp_path):
    (tree := tmp_path / "tree.json").write_text('{"paint": ["red", "blue"]}')
    folder = tmp_path / "joint"
    summary = experiment.main(config_of(folder, rectangles, tree=tree, without_boxes=("blue",)))
    assert {"test/ap50/red", "test/ap50/blue", "valid/ap50/red"} <= summary.keys()
    assert "valid/ap50/blue" not in summary
    served = serving.load(folder)
    assert served.card.classes == ("paint", "red", "blue")
    assert served.model.parents == (-1, 0, 0)
    found = jax.jit(served.predict)(served.variables, served.card.pixels([rectangles / "JPEGImages" / "3.png"]))
    assert found["boxes"].shape == (1, 100, 4)
    config = settings.change(evaluate.Config(), dataset=str(rectangles), run=folder, run_dir=tmp_path / "scored")
    assert {"ap50/red", "ap50/blue"} <= evaluate.main(config).keys()


@pytest.mark.exhaustive
def test_a_run_is_scored_on_other_images(trained, rectangles, tmp_path):
    folder, _ = trained
    config = settings.change(evaluate.Config(), dataset=str(rectangles), run=folder, run_dir=tmp_path / "run")
    summary = evaluate.main(config)
    assert summary["count"] == 60
    assert {"map50", "ap", "ap50/red", "ap50/blue"} <= summary.keys()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 100}, "--size 100 must be a multiple of the coarsest stride, 32"),
        ({"grid_depths": (1,)}, "want a number for each grid"),
        ({"scales": (96, 64)}, "--scales 96 64"),
        ({"grid_strides": (32, 7, 8)}, "has no feature map of stride 7"),
        ({"anchors": 500}, "1500 anchors from"),
        ({"head": "ssd", "map_strides": (32,), "extra_features": ()}, "SSD wants 2 feature maps or more"),
        ({"head": "ssd", "least_scale": 0.9}, "--least-scale 0.9 must be below 0.9"),
        ({"head": "ssd", "anchors": 5, "box_weight": 1.0}, "--head ssd has no --anchors, --box-weight: leave out"),
        ({"without_boxes": ("red",), "mosaic": 0.5}, "want --head yolo and no --mosaic"),
        ({"without_boxes": ("pink",)}, "--without-boxes pink: the classes are blue, red"),
        ({"negatives": 1.0}, "--head yolo has no --negatives"),
        ({"dataset": "nowhere/at/all"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(rectangles, tmp_path, values, expected):
    with pytest.raises(UserError) as caught:
        experiment.main(config_of(tmp_path / "run", values.pop("dataset", rectangles), **values))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_darknet_files_predict_the_known_boxes(shared, tmp_path):
    folder = shared / "weights" / "yolo_fastest"
    files = (folder / "yolo-fastest-1.1-xl.cfg", folder / "yolo-fastest-1.1-xl.weights")
    fields = {"darknet": files, "names": folder / "coco.names", "run_dir": tmp_path / "run"}
    predict.main(settings.change(predict.Config(), images=(str(folder / "dog.jpg"),), **fields))
    (image,) = json.loads((tmp_path / "run" / "predictions.json").read_text())["images"]
    found = image["predictions"]
    assert [each["name"] for each in found] == ["dog", "bicycle", "car", "truck"]
    np.testing.assert_allclose([each["score"] for each in found], [0.9584, 0.8939, 0.8410, 0.4371], atol=0.01)
    boxes = np.array([each["box"] for each in found])
    expected = [[113.9, 188.5, 272.0, 347.1], [113.0, 126.7, 460.4, 370.7], [449.8, 78.2, 234.8, 84.3]]
    expected = np.array([*expected, [450.7, 80.3, 225.0, 83.0]])
    np.testing.assert_allclose(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1), expected, atol=1)
    with Image.open(tmp_path / "run" / "predictions.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 100
    with pytest.raises(UserError, match="--names FILE, the names of its classes, are given together"):
        predict.main(settings.change(predict.Config(), **{**fields, "names": None}))
    (tmp_path / "two.names").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"has 2 names, but the network of .* has 80 classes"):
        predict.main(settings.change(predict.Config(), **{**fields, "names": tmp_path / "two.names"}))


@pytest.mark.exhaustive
def test_a_published_detector_predicts_as_the_network_of_its_cfg(shared, tmp_path):
    (tmp_path / "tiny.cfg").write_text(CFG["yolov3_tiny"](416))
    model = darknet.read(tmp_path / "tiny.cfg")
    file = tmp_path / "tiny.weights"  # named like the published one it would have to be that one
    write_weights(file, model, randomized(model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))))
    served = serving.of_published(pretrained.network("yolov3_tiny.darknet", file))
    names = shared / "weights" / "yolo_fastest" / "coco.names"
    other = serving.of_darknet(tmp_path / "tiny.cfg", file, names)
    photo = [shared / "weights" / "yolo_fastest" / "dog.jpg"]
    assert served.card.classes[16] == other.card.classes[16] == "dog"
    pixels = served.card.pixels(photo)
    ours, theirs = (jax.jit(each.predict)(each.variables, pixels) for each in (served, other))
    assert ours["valid"].sum() > 10
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3)
    card = settings.Network("yolov3_tiny.darknet", file).card()
    assert (card.task, card.image_size) == ("detect", 416)
