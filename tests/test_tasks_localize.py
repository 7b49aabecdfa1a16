"""tasks.localize and experiments/localize.py: codes, losses, sums by hand; a run on drawn images and on real ones."""

import json
import shutil
from typing import ClassVar

import evaluate
import flax.linen as linen
import jax
import jax.numpy as jnp
import localize as experiment
import numpy as np
import predict
import pytest
from PIL import Image

from cnnjax import models, serving, settings
from cnnjax.data import annotations, sources
from cnnjax.ops import boxes
from cnnjax.tasks import localize
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")


def config_of(**values):
    """Config with these values, which may be fields of its groups."""
    return settings.change(experiment.Config(), **values)


BOXES = np.array([[10.0, 20.0, 50.0, 100.0], [0.0, 0.0, 100.0, 100.0]], np.float32)


def test_codes_by_hand_and_back():
    codes = localize.encode(BOXES, 100)
    np.testing.assert_allclose(codes, [[0.3, 0.6, 0.4**0.5, 0.8**0.5], [0.5, 0.5, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(localize.decode(codes, 100), BOXES, atol=1e-4)
    mirrored = localize.decode(codes * np.array([1, 1, -1, -1]), 100)  # the sign of a root does not count
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
    batch = {"labels": np.array([0, 1, 1, 0])[:, None], "boxes": boxes[:, None]}
    logits = np.array([[2.0, 1], [1, 2], [2, 1], [2, 1]])
    found, rows = localize.compare(logits, codes, batch, np.array([1.0, 1, 1, 0]), 100)
    expected = {"correct": 2, "iou": 2 + 1 / 16, "localized": 1, "count": 3}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
    np.testing.assert_allclose(rows["iou"], [1, 1 / 16, 1, 1], rtol=1e-4)
    assert rows["predicted"].tolist() == [0, 1, 0, 0]
    sums = {k: np.asarray(v) for k, v in found.items()}
    figures = localize.figures(sums, ("a", "b"))
    np.testing.assert_allclose(figures["localization_accuracy"], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose([figures["iou/a"], figures["iou/b"]], [1, (1 + 1 / 16) / 2], rtol=1e-4)
    absent = {**sums, "class_iou": np.array([1.0, 0]), "class_count": np.array([1, 0])}
    assert "iou/b" not in localize.figures(absent, ("a", "b"))  # not 0, as no example has this class


@pytest.mark.parametrize("box_features", [None, 8])
def test_both_heads_see_the_base(box_features):
    model = localize.Localizer(models.create("resnet18", num_classes=None), 3, box_features)
    tree = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    assert set(tree["params"]) == {"base", "head", "box"} | ({"box_reduce", "box_weight"} if box_features else set())
    logits, endpoints = jax.eval_shape(model.apply, tree, np.zeros((2, 64, 64, 3), np.float32))
    assert (logits.shape, endpoints["box"].shape) == ((2, 3), (2, 4))
    assert tree["params"]["box"]["kernel"].shape[0] == (512 if box_features is None else 8)


class Map(linen.Module):
    """Base whose last feature map is the image."""

    strides: ClassVar[dict[str, int]] = {"map": 1}

    @linen.compact
    def __call__(self, images, *, train=False):
        return None, {"map": images, "pooled": images.mean((1, 2))}


def test_the_box_is_the_weighted_mean_of_predictions_relative_to_positions():
    model = localize.Localizer(Map(), 2, 1)
    variables = model.init(jax.random.key(0), np.zeros((1, 4, 5, 1), np.float32))
    fresh = model.apply(variables, np.random.default_rng(0).normal(size=(3, 4, 5, 1)).astype(np.float32))[1]["box"]
    np.testing.assert_allclose(localize.decode(fresh, 100), [[25, 25, 75, 75]] * 3, atol=1e-3)  # for every image
    params = jax.tree.map(np.asarray, dict(variables["params"]))
    params["box_reduce"] = {"kernel": np.ones((1, 1, 1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    params["box_weight"] = {"kernel": np.full((1, 1), 100, np.float32), "bias": np.zeros(1, np.float32)}
    params["box"] = {
        **params["box"],
        "bias": np.array([0.6, 0.5, 0.3, 0.4], np.float32),
    }  # a tenth to the right of the position
    maps = np.zeros((3, 4, 5, 1), np.float32)
    maps[0, 1, 3] = maps[1, 2, 0] = 1
    maps[2, 0, 0] = maps[2, 3, 4] = 1  # two positions of equal weight
    codes = model.apply({"params": params}, maps)[1]["box"]
    middles = np.array([[3.5 / 5, 1.5 / 4], [0.5 / 5, 2.5 / 4], [0.5, 0.5]])
    np.testing.assert_allclose(codes[:, :2], middles + np.array([0.1, 0]), atol=1e-6)
    np.testing.assert_allclose(codes[:, 2:], [[0.3, 0.4]] * 3, atol=1e-6)


@pytest.fixture(scope="module")
def trained(rectangles, tmp_path_factory, one_device_in_module):
    """Folder, configuration and summary of a smoke run."""
    folder = tmp_path_factory.mktemp("localize") / "run"
    config = config_of(dataset=rectangles, run_dir=folder, smoke=True, phases=(settings.Phase("all", 2),))
    return folder, config, experiment.main(config)


def test_a_run_leaves_every_figure_and_goes_on(trained, rectangles, tmp_path):
    folder, config, summary = trained
    assert {"test/accuracy", "test/iou", "test/localization_accuracy", "test/iou/red", "valid/iou"} <= summary.keys()
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {"boxes.png", "curves.png", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}
    assert experiment.main(config) == summary

    photo = rectangles / "JPEGImages" / "0.png"
    predict.main(settings.change(predict.Config(), images=(str(photo),), run=folder, run_dir=tmp_path / "predicted"))
    (entry,) = json.loads((tmp_path / "predicted" / "predictions.json").read_text())["images"]
    served = serving.load(folder)
    image = served.card.transform()({"image": np.asarray(Image.open(photo))})["image"]
    predicted = jax.jit(served.predict)  # operation by operation it takes longer than to compile
    (box,) = predicted(served.variables, image[None])["boxes"]
    np.testing.assert_allclose(entry["box"], box / 128 * np.array([80, 60, 80, 60]), atol=0.06)  # pixels of the file
    assert {p["name"] for p in entry["predictions"]} == {"red", "blue"}

    scored = evaluate.main(
        settings.change(evaluate.Config(), dataset=str(rectangles), run=folder, run_dir=tmp_path / "scored")
    )
    data = sources.Mapped(annotations.AnnotatedImages(annotations.open(rectangles)), served.card.transform())
    examples = sources.in_memory(data).fields
    overlap = boxes.iou_paired(predicted(served.variables, examples["image"])["boxes"], examples["boxes"][:, 0])
    assert scored["iou"] == pytest.approx(float(overlap.mean()), abs=1e-4)
    assert (scored["count"], scored["faults"]) == (60, 0)
    assert {"boxes.png", "summary.json"} <= {p.name for p in (tmp_path / "scored").iterdir()}


@pytest.mark.exhaustive
def test_a_run_is_scored_without_images_that_cannot_be_read(trained, rectangles, tmp_path, capsys):
    photo = rectangles / "JPEGImages" / "0.png"
    shutil.copytree(rectangles, tmp_path / "damaged")
    (tmp_path / "damaged" / "JPEGImages" / "3.png").write_bytes(photo.read_bytes()[:100])
    values = {"dataset": str(tmp_path / "damaged"), "run": trained[0], "run_dir": tmp_path / "rescored"}
    scored = evaluate.main(settings.change(evaluate.Config(), **values))
    assert (scored["count"], scored["unreadable"]) == (59, 1)
    assert f"left out: {tmp_path}/damaged/JPEGImages/3.png: not a readable image" in capsys.readouterr().err


def test_data_are_cut_reproducibly_and_boxes_follow_the_squeeze(rectangles):
    config = config_of(dataset=rectangles)
    first, again = (experiment.load_data(config, 96) for _ in range(2))
    assert {part: len(x) for part, x in vars(first).items()} == {"train": 40, "valid": 8, "test": 12}
    for part in vars(first):
        ours, others = (getattr(splits, part).fields["image"] for splits in (first, again))
        assert np.array_equal(ours, others)
    image, box = (first.train.fields[name][0] for name in ("image", "boxes"))
    (box,) = box
    colored = np.abs(image.astype(int) - 128).max(-1) > 60
    rows, columns = np.flatnonzero(colored.any(1)), np.flatnonzero(colored.any(0))
    np.testing.assert_allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.5)


def test_the_shared_animals_are_the_ones_with_exactly_one(shared):
    data = experiment.load_data(config_of(dataset=shared / "data" / "animals"), 32)
    assert sum(len(x) for x in vars(data).values()) == 291
    assert data.train.classes == ("kangaroo", "raccoon")


def test_what_cannot_be_is_one_error(tmp_path):
    with pytest.raises(UserError):
        experiment.main(config_of(dataset=tmp_path / "nothing", run_dir=tmp_path / "run", smoke=True))
    with pytest.raises(UserError, match="--class-weight must be in 0"):
        experiment.resolve(config_of(class_weight=1.5))


def voc_lists(rectangles, folder, **lists):
    """Copy of the folder of rectangles with these lists in ImageSets/Main."""
    shutil.copytree(rectangles, folder)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, numbers in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}\n" for i in numbers))
    return config_of(dataset=folder)


def test_named_splits_are_taken_and_no_photo_is_in_two(rectangles, tmp_path):
    config = voc_lists(rectangles, tmp_path / "a", train=range(40), test=range(40, 60))
    assert {p: len(x) for p, x in vars(experiment.load_data(config, 32)).items()} == {
        "train": 34,
        "test": 20,
        "valid": 6,
    }
    config = voc_lists(rectangles, tmp_path / "b", train=range(40), test=range(39, 60))
    with pytest.raises(UserError, match=r"39.png is in the splits train and test"):
        experiment.load_data(config, 32)
    # Only a list of test images does not define a training split: all splits are cut anew.
    config = voc_lists(rectangles, tmp_path / "c", test=range(40, 60))
    assert sum(len(x) for x in vars(experiment.load_data(config, 32)).values()) == 60


def test_one_file_is_cut_into_splits_that_share_nothing(rectangles, tmp_path):
    photos = sorted((rectangles / "JPEGImages").glob("*.png"))
    content = {
        "images": [{"id": i, "file_name": str(p), "width": 80, "height": 60} for i, p in enumerate(photos)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [i / 2, 5, 20, 20], "iscrowd": 0, "area": 400}
            for i in range(len(photos))
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = experiment.load_data(config_of(dataset=tmp_path / "instances.json"), 80)
    lefts = [set(np.round(x.fields["boxes"][:, 0, 0], 2).tolist()) for x in vars(data).values()]
    assert sum(map(len, lefts)) == len(set.union(*lefts)) == 60


def test_a_damaged_split_is_an_error_not_an_absent_one(rectangles, tmp_path):
    config = voc_lists(rectangles, tmp_path / "d", train=range(40), test=[])
    with pytest.raises(UserError, match="no picture with annotations is left"):
        experiment.load_data(config, 32)
