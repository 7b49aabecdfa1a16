"""tasks.localize and experiments/localize.py: codes, losses, sums by hand; a run on drawn photos and on real ones."""

import json
import shutil
import xml.etree.ElementTree as ET

import flax.linen as linen
import jax
import jax.numpy as jnp
import localize as experiment
import numpy as np
import predict
import pytest
from PIL import Image

from cnnjax import models
from cnnjax.tasks import localize, serve
from cnnjax.types import UserError

BOXES = np.array([[10.0, 20.0, 50.0, 100.0], [0.0, 0.0, 100.0, 100.0]], np.float32)


def test_codes_by_hand_and_back():
    codes = localize.encode(BOXES, 100)
    np.testing.assert_allclose(codes, [[0.3, 0.6, 0.4**0.5, 0.8**0.5], [0.5, 0.5, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(localize.decode(codes, 100), BOXES, atol=1e-4)
    mirrored = localize.decode(codes * np.array([1, 1, -1, -1]), 100)  # roots count without their sign
    np.testing.assert_allclose(mirrored, BOXES, atol=1e-4)


def test_losses_by_hand():
    codes = np.asarray(localize.encode(BOXES, 100)) + np.array([[0.02, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(localize.box_losses("mse", codes, BOXES, 100), [0.02**2 / 4, 0], atol=1e-9)
    np.testing.assert_allclose(localize.box_losses("smooth_l1", codes, BOXES, 100), [0.02**2 / 0.2 / 4, 0], atol=1e-8)
    # 2 pixels to the right of 40: 38/42 of the union, and the smallest box around is the union.
    np.testing.assert_allclose(localize.box_losses("giou", codes, BOXES, 100), [1 - 38 / 42, 0], atol=1e-5)
    for kind in ("mse", "smooth_l1", "giou"):
        grads = jax.grad(lambda c, kind=kind: localize.box_losses(kind, c, BOXES, 100).sum())(jnp.zeros((2, 4)))
        assert np.isfinite(grads).all()


def test_sums_by_hand():
    codes = localize.encode(BOXES, 100).at[1, 2:].multiply(0.5)  # the second a quarter of the sides
    codes = jnp.concatenate([codes, codes[:1], codes[:1]])
    boxes = np.concatenate([BOXES, BOXES[:1], BOXES[:1]])
    batch = {"label": np.array([0, 1, 1, 0]), "box": boxes}
    logits = np.array([[2.0, 1], [1, 2], [2, 1], [2, 1]])
    found = localize.sums(logits, codes, batch, np.array([1.0, 1, 1, 0]), 100)
    expected = {"correct": 2, "iou": 2 + 1 / 16, "both": 1, "count": 3}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
    figures = localize.figures({k: np.asarray(v) for k, v in found.items()}, ("a", "b"), "test/")
    np.testing.assert_allclose(figures["test/both"], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose([figures["test/iou/a"], figures["test/iou/b"]], [1, (1 + 1 / 16) / 2], rtol=1e-4)


@pytest.mark.parametrize("box_maps", [None, 8])
def test_both_heads_see_the_base(box_maps):
    model = localize.Localizer(models.create("resnet18", num_classes=None), 3, box_maps)
    tree = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    assert set(tree["params"]) == {"base", "head", "box"} | ({"box_reduce", "box_weight"} if box_maps else set())
    logits, endpoints = jax.eval_shape(model.apply, tree, np.zeros((2, 64, 64, 3), np.float32))
    assert (logits.shape, endpoints["box"].shape) == ((2, 3), (2, 4))
    assert tree["params"]["box"]["kernel"].shape[0] == (512 if box_maps is None else 8)


class Map(linen.Module):
    """A base whose last map is the image."""

    @linen.compact
    def __call__(self, images, *, train=False):
        return None, {"map": images, "pooled": images.mean((1, 2))}


def test_the_box_is_told_by_the_places_that_count_as_seen_from_them():
    model = localize.Localizer(Map(), 2, 1)
    variables = model.init(jax.random.key(0), np.zeros((1, 4, 5, 1), np.float32))
    fresh = model.apply(variables, np.random.default_rng(0).normal(size=(3, 4, 5, 1)).astype(np.float32))[1]["box"]
    np.testing.assert_allclose(localize.decode(fresh, 100), [[25, 25, 75, 75]] * 3, atol=1e-3)  # whatever it sees
    params = jax.tree.map(np.asarray, dict(variables["params"]))
    params["box_reduce"] = {"kernel": np.ones((1, 1, 1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    params["box_weight"] = {"kernel": np.full((1, 1), 100, np.float32), "bias": np.zeros(1, np.float32)}
    params["box"] = {**params["box"], "bias": np.array([0.6, 0.5, 0.3, 0.4], np.float32)}  # a tenth to the right
    maps = np.zeros((3, 4, 5, 1), np.float32)
    maps[0, 1, 3] = maps[1, 2, 0] = 1
    maps[2, 0, 0] = maps[2, 3, 4] = 1  # two places that count the same
    codes = model.apply({"params": params}, maps)[1]["box"]
    middles = np.array([[3.5 / 5, 1.5 / 4], [0.5 / 5, 2.5 / 4], [0.5, 0.5]])
    np.testing.assert_allclose(codes[:, :2], middles + np.array([0.1, 0]), atol=1e-6)
    np.testing.assert_allclose(codes[:, 2:], [[0.3, 0.4]] * 3, atol=1e-6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A Pascal VOC folder: on grey, one rectangle, red or blue."""
    root, rng = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    (root / "JPEGImages").mkdir()
    (root / "Annotations").mkdir()
    for i in range(60):
        pixels = np.full((60, 80, 3), 128, np.uint8)
        left, top = rng.integers(0, 40), rng.integers(0, 30)
        right, bottom = left + rng.integers(15, 40), top + rng.integers(15, 30)
        pixels[top:bottom, left:right] = (200, 0, 0) if i % 2 else (0, 0, 200)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{i}.png")
        tree = ET.Element("annotation")
        ET.SubElement(tree, "filename").text = f"{i}.png"
        size = ET.SubElement(tree, "size")
        for name, value in (("width", 80), ("height", 60), ("depth", 3)):
            ET.SubElement(size, name).text = str(value)
        thing = ET.SubElement(tree, "object")
        ET.SubElement(thing, "name").text = "red" if i % 2 else "blue"
        box = ET.SubElement(thing, "bndbox")
        for name, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ET.SubElement(box, name).text = str(value)
        ET.ElementTree(tree).write(root / "Annotations" / f"{i}.xml")
    return root


def test_a_run_leaves_every_figure_and_goes_on(drawn, tmp_path):
    config = experiment.Config(dataset=drawn, run_dir=tmp_path / "run", smoke=True)
    summary = experiment.main(config)
    assert {"test/accuracy", "test/iou", "test/both", "test/iou/red", "valid/iou"} <= summary.keys()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert {"boxes.png", "curves.png", "metrics.jsonl"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert experiment.main(config) == summary

    photo = drawn / "JPEGImages" / "0.png"
    predict.main(predict.Config((str(photo),), run=tmp_path / "run", run_dir=tmp_path / "predicted"))
    (said,) = json.loads((tmp_path / "predicted" / "predictions.json").read_text())["images"]
    served = serve.load(tmp_path / "run", models.create)
    image = served.card.transform()(np.asarray(Image.open(photo)))
    (box,) = served.predict(served.variables, image[None])["boxes"]
    np.testing.assert_allclose(said["box"], box / 128 * np.array([80, 60, 80, 60]), atol=0.06)  # pixels of the file
    assert {p["name"] for p in said["predictions"]} == {"red", "blue"}


def test_data_are_cut_reproducibly_and_boxes_follow_the_squeeze(drawn):
    config = experiment.Config(dataset=drawn)
    first, again = (experiment.load_data(config, 96) for _ in range(2))
    assert {part: len(x.labels) for part, x in first.items()} == {"train": 40, "valid": 8, "test": 12}
    for part in first:
        assert np.array_equal(first[part].images, again[part].images)
    image, box = first["train"].images[0], first["train"].boxes[0]
    coloured = np.abs(image.astype(int) - 128).max(-1) > 60
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    np.testing.assert_allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.5)


def test_the_shared_animals_are_the_ones_with_exactly_one(shared):
    data = experiment.load_data(experiment.Config(dataset=shared / "data" / "animals"), 32)
    assert sum(len(x.labels) for x in data.values()) == 291
    assert data["train"].classes == ("kangaroo", "raccoon")


def test_what_cannot_be_is_one_error(tmp_path):
    with pytest.raises(UserError):
        experiment.main(experiment.Config(dataset=tmp_path / "nothing", run_dir=tmp_path / "run", smoke=True))
    with pytest.raises(UserError, match="--class-weight must be in 0"):
        experiment.resolve(experiment.Config(class_weight=1.5))


def voc_lists(drawn, folder, **lists):
    """A copy of the drawn photos with these lists in ImageSets/Main."""
    shutil.copytree(drawn, folder)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, numbers in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}\n" for i in numbers))
    return experiment.Config(dataset=folder)


def test_named_splits_are_taken_and_no_photo_is_in_two(drawn, tmp_path):
    config = voc_lists(drawn, tmp_path / "a", train=range(40), test=range(40, 60))
    assert {p: len(x.labels) for p, x in experiment.load_data(config, 32).items()} == {
        "train": 34,
        "test": 20,
        "valid": 6,
    }
    config = voc_lists(drawn, tmp_path / "b", train=range(40), test=range(39, 60))
    with pytest.raises(UserError, match=r"39.png is in the splits train and test"):
        experiment.load_data(config, 32)
    # A list of test photos alone says not what to train on: everything is cut anew.
    config = voc_lists(drawn, tmp_path / "c", test=range(40, 60))
    assert sum(len(x.labels) for x in experiment.load_data(config, 32).values()) == 60


def test_one_file_is_cut_into_splits_that_share_nothing(drawn, tmp_path):
    photos = sorted((drawn / "JPEGImages").glob("*.png"))
    content = {
        "images": [{"id": i, "file_name": str(p), "width": 80, "height": 60} for i, p in enumerate(photos)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [i / 2, 5, 20, 20], "iscrowd": 0, "area": 400}
            for i in range(len(photos))
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = experiment.load_data(experiment.Config(dataset=tmp_path / "instances.json"), 80)
    lefts = [set(np.round(x.boxes[:, 0], 2).tolist()) for x in data.values()]
    assert sum(map(len, lefts)) == len(set.union(*lefts)) == 60


def test_a_damaged_split_is_an_error_not_an_absent_one(drawn, tmp_path):
    config = voc_lists(drawn, tmp_path / "d", train=range(40), test=[])
    with pytest.raises(UserError, match="no picture with annotations is left"):
        experiment.load_data(config, 32)
