"""tasks.segment and experiments/segment.py: losses and figures by hand, padding, batch sizes; a run on drawn images."""

import json
from typing import ClassVar

import evaluate
import export
import jax
import jax.numpy as jnp
import numpy as np
import optax
import predict
import pytest
import segment as experiment
from PIL import Image

from cnnjax import models, plot, serving, settings, sharding, train
from cnnjax.data import pipeline, preparation, segmented, sources, views
from cnnjax.metrics import segmentation as metrics
from cnnjax.ops import resize, tiles
from cnnjax.tasks import classify, segment
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")

CLASSES = ("gray", "red", "blue")
KEY = jax.random.key(0)


def drawn(seed, height=40, width=48):
    """Image with a red and a blue rectangle on gray, and its classes; the first rows have none."""
    rng = np.random.default_rng(seed)
    image, labels = np.full((height, width, 3), 128, np.uint8), np.zeros((height, width), np.uint8)
    for label, color in ((1, (200, 0, 0)), (2, (0, 0, 200))):
        top, left = rng.integers(4, height - 12), rng.integers(0, width - 14)
        place = slice(top, top + 12), slice(left, left + 14)
        image[place], labels[place] = color, label
    labels[:2] = 255
    return {"image": image, "segmentation": labels}


@pytest.fixture(scope="module")
def network():
    model = models.create("unet", features=(4, 8), num_classes=3)
    return model, model.init({"params": KEY, "dropout": KEY}, np.zeros((1, 40, 48, 3), np.float32))


def test_the_loss_is_the_mean_over_weighted_pixels_of_the_batch(network):
    model, variables = network
    weights = np.array([0.5, 2, 3], np.float32)
    batch = sources.stack([drawn(0), drawn(1)])
    batch = {**batch, "image": batch["image"] / np.float32(255)}
    task = segment.task(model, classify.unit, CLASSES, class_weights=weights)
    loss, (_, sums) = jax.jit(task.loss_fn)(variables, batch, KEY)
    (logits, _), _ = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    counted = batch["segmentation"] != 255
    labels = batch["segmentation"][counted].astype(int)
    each = optax.softmax_cross_entropy_with_integer_labels(logits[counted], labels)
    assert loss == pytest.approx(float((each * weights[labels]).sum() / weights[labels].sum()), rel=1e-5)
    figures = task.figures(jax.tree.map(np.asarray, sums), {})
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert figures["pixel_accuracy"] == pytest.approx(float((logits[counted].argmax(-1) == labels).mean()), rel=1e-6)


def test_auxiliary_logits_and_dice_are_added():
    class Aux:
        aux_weights: ClassVar = {"aux": 0.4}

        def apply(self, variables, images, **options):
            return (variables["params"]["x"], {"aux": 2 * variables["params"]["x"]}), {}

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32)
    batch = {"image": np.zeros((2, 4, 5, 3)), "segmentation": np.random.default_rng(1).integers(0, 3, (2, 4, 5))}

    def loss(model, **options):
        return float(
            segment.task(model, classify.unit, CLASSES, **options).loss_fn({"params": {"x": x}}, batch, KEY)[0]
        )

    def entropy(logits):
        return float(optax.softmax_cross_entropy_with_integer_labels(logits, batch["segmentation"]).mean())

    assert loss(Aux()) == pytest.approx(entropy(x) + 0.4 * entropy(2 * x), rel=1e-5)
    assert loss(Aux(), dice=1.0) > loss(Aux())
    assert loss(Aux(), focus=2.0) < loss(Aux())


@pytest.fixture(scope="module")
def figures_of(network):
    model, variables = network
    task = segment.task(model, classify.unit, CLASSES)

    def figures(examples, batch_size, devices):
        source = sources.Arrays(sources.stack(examples), CLASSES)
        step = train.make_eval_step(task.eval_fn, devices)
        return task.figures(*train.evaluate(step, variables, pipeline.eval_batches(source, batch_size), devices))

    return figures


def test_figures_do_not_depend_on_the_batch_size(figures_of):
    examples, devices = [drawn(i) for i in range(7)], sharding.make_mesh(jax.devices()[:1])
    expected = figures_of(examples, 7, devices)
    assert {"miou", "iou/red", "pixel_accuracy", "mean_accuracy", "frequency_iou", "boundary_f1"} <= expected.keys()
    assert figures_of(examples, 1, devices) == expected
    assert figures_of(examples, 3, devices) == expected


@pytest.mark.exhaustive
def test_figures_do_not_depend_on_the_devices(figures_of):
    examples = [drawn(i) for i in range(11)]
    one, eight = (sharding.make_mesh(jax.devices()[:count]) for count in (1, 8))
    assert (one.size, eight.size) == (1, 8)
    assert figures_of(examples, 8, eight) == figures_of(examples, 8, one)


def test_mirror_images_and_other_sizes_are_averaged(network):
    model, variables = network
    images = np.stack([drawn(i)["image"] for i in range(2)])

    def probabilities(x, size=None):
        x = classify.unit(x) if size is None else resize.bilinear(classify.unit(x), size)
        return jax.nn.softmax(resize.bilinear(model.apply(variables, x)[0], (40, 48)))

    task = segment.task(model, classify.unit, CLASSES, mirrored=(2,))
    expected = (probabilities(images) + probabilities(images[:, :, ::-1])[:, :, ::-1]) / 2
    found = task.predict(variables, images)
    np.testing.assert_allclose(found["confidence"], expected.max(-1), atol=1e-6)
    mirrored = task.predict(variables, images[:, :, ::-1])
    np.testing.assert_allclose(mirrored["confidence"][:, :, ::-1], found["confidence"], atol=1e-6)

    task = segment.task(model, classify.unit, CLASSES, scales=(1.0, 1.5))
    expected = (probabilities(images) + probabilities(images, (60, 72))) / 2
    np.testing.assert_allclose(task.predict(variables, images)["confidence"], expected.max(-1), atol=1e-6)


@pytest.mark.exhaustive
def test_figures_in_tiles_are_those_of_the_whole_image():
    """Half of the overlap covers what a pixel depends on: the miou in tiles is the same."""
    base = models.create("mobilenet_v1", num_classes=None, width=0.25)
    model = models.create("fcn8s_vgg16", base=base, num_classes=3)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32) * (x.ndim == 4),
        model.init(KEY, np.zeros((1, 64, 64, 3), np.float32)),
    )
    predict_ = jax.jit(segment.task(model, classify.unit, CLASSES).predict)
    example = drawn(0, 96, 1024)

    def compute(images):
        return {"segmentation": jax.device_get(predict_(variables, images)["segmentation"])}

    def miou(found):
        matrix = metrics.confusion(found.astype(np.int32), example["segmentation"], 3)
        return metrics.figures({"confusion": matrix}, CLASSES)["miou"]

    sizes = (2048, 0), (576, 448)
    whole, tiled = (tiles.predict(compute, example["image"], *each)["segmentation"] for each in sizes)
    assert len(np.unique(whole)) > 1
    assert miou(tiled) == pytest.approx(miou(whole), abs=1e-6)


def test_prediction_description_and_picture(network):
    model, variables = network
    task = segment.task(model, classify.unit, CLASSES)
    example = drawn(0)
    found = task.predict(variables, example["image"][None])
    one = {name: np.asarray(x[0]) for name, x in found.items()}
    assert (one["segmentation"].shape, one["segmentation"].dtype) == ((40, 48), np.uint8)
    assert (one["confidence"] >= 1 / 3 - 1e-6).all()
    truth = {"segmentation": np.where(example["segmentation"] == 255, 0, example["segmentation"])}
    described = task.describe(truth, None)["classes"]
    assert [each["name"] for each in described] == ["gray", *(each["name"] for each in described[1:])]
    assert sum(each["share"] for each in described) == pytest.approx(1, abs=1e-3)
    picture = task.draw(example, truth)
    assert picture.title == "mean IoU 100%"
    figure = plot.pictures([picture])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CLASSES)


def test_colors_are_pascal_vocs():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    expected += [[128, 128, 128], [64, 0, 0], [192, 0, 0]]
    np.testing.assert_array_equal(plot.voc_colors(10), expected)
    over = plot.overlay(np.array([[1, 255]]))
    np.testing.assert_allclose(over[0, :, 3], [0.6, 0])


def test_random_parts_move_image_and_mask_alike():
    view = views.random_scale(32, 40, (0.5, 2.0))
    for seed in range(20):
        seen = view(np.random.default_rng(seed), drawn(seed))
        assert seen["image"].shape == (32, 40, 3)
        labels = seen["segmentation"]
        assert (labels == 255).mean() < 1
        for label, channel in ((1, 0), (2, 2)):
            shown = seen["image"][labels == label].astype(int)
            if len(shown) > 40:
                assert (shown[:, channel] > shown[:, 2 - channel]).mean() > 0.9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("segment")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(40):
        example = drawn(i, *((64, 80) if i != 5 else (50, 60)))  # one that is smaller than the others
        Image.fromarray(example["image"]).save(root / "images" / f"{i}.png")
        Image.fromarray(example["segmentation"]).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.mark.exhaustive
def test_a_run_is_kept_predicts_masks_and_is_exported(folder, tmp_path, few_pictures, monkeypatch, capsys):
    fields = {"dataset": str(folder), "smoke": True, "balance": True, "phases": (settings.Phase("all", 2),)}
    summary = experiment.main(settings.change(experiment.Config(), **fields, run_dir=tmp_path / "run"))
    assert {"test/miou", "test/iou/red", "test/boundary_f1", "valid/miou"} <= summary.keys()
    assert {"segmentation.png", "worst.png", "confusion.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
    served = serving.load(tmp_path / "run")
    assert served.card.shape == (64, 80, 3)

    small, large, padded = folder / "images" / "3.png", tmp_path / "large.png", folder / "images" / "5.png"
    Image.open(small).resize((160, 128)).save(large)
    photos = [str(small), str(large), str(padded)]
    fields = {"images": tuple(photos), "run": tmp_path / "run", "run_dir": tmp_path / "predicted"}
    predict.main(settings.change(predict.Config(), **fields))
    entries = json.loads((tmp_path / "predicted" / "predictions.json").read_text())["images"]
    found = jax.jit(served.predict)(served.variables, served.card.pixels(photos))
    for entry, own, size in zip(entries, found["segmentation"], ((80, 64), (160, 128), (60, 50)), strict=True):
        with Image.open(tmp_path / "predicted" / entry["mask"]) as mask:
            assert (mask.mode, mask.size) == ("P", size)
            step, inside = max(1, size[0] // 80), np.asarray(own)[: size[1], : size[0]]
            np.testing.assert_array_equal(np.asarray(mask)[::step, ::step], inside)
        shares = np.bincount(inside.ravel(), minlength=3) / inside.size  # of the photo, not of what is padded
        assert {each["name"]: each["share"] for each in entry["classes"]} == {
            name: pytest.approx(x, abs=1e-4) for name, x in zip(CLASSES, shares, strict=True) if x
        }

    fields = {"dataset": str(folder), "run": tmp_path / "run", "run_dir": tmp_path / "scored", "batch_size": 7}
    scored = evaluate.main(settings.change(evaluate.Config(), **fields))
    assert (scored["count"], scored["unreadable"]) == (40, 0)
    source, total = segmented.folder_parts(folder)["all"], 0
    for i, pair in enumerate(source.pairs):
        truth = served.card.transform()(source[i])["segmentation"]
        own = served.predict(served.variables, served.card.pixels([pair.image]))["segmentation"][0]
        total = total + np.asarray(metrics.confusion(own.astype(np.int32), truth, 3))
    expected = metrics.figures({"confusion": total}, CLASSES)
    assert {name: scored[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    fields |= {"run_dir": tmp_path / "mirrored", "test_mirrored": True}
    assert evaluate.main(settings.change(evaluate.Config(), **fields))["count"] == 40

    fields = {"run": tmp_path / "run", "platforms": ("cpu",), "run_dir": tmp_path / "export"}
    assert export.main(settings.change(export.Config(), **fields))["largest_difference"] < 1e-4
    capsys.readouterr()
    assert preparation.main(tmp_path / "export" / "network.stablehlo", photos) == 0
    for line, entry in zip(capsys.readouterr().out.splitlines()[-3:], entries, strict=True):
        expected = {each["name"]: each["share"] for each in entry["classes"]}
        assert json.loads(line)["shares"] == pytest.approx(expected, abs=2e-3)  # of the large photo's at half its size


@pytest.mark.exhaustive
def test_a_finer_network_goes_on_from_a_coarser_run(folder, tmp_path, few_pictures):
    fields = {"dataset": str(folder), "smoke": True, "phases": (settings.Phase("all", 1),)}
    experiment.main(settings.change(experiment.Config(), **fields, skips=(32,), run_dir=tmp_path / "32"))
    fields |= {"continue_from": tmp_path / "32", "continue_with": "weights", "skips": (32, 16)}
    config = settings.change(experiment.Config(), **fields, run_dir=tmp_path / "16")
    built = experiment.build(experiment.resolve(config))
    coarse = serving.load(tmp_path / "32").variables["params"]
    np.testing.assert_array_equal(built.variables["params"]["score32"]["kernel"], coarse["score32"]["kernel"])
    experiment.main(config)
    assert serving.load_card(tmp_path / "16").origin == f"{tmp_path / '32'}: its network"
    config = settings.change(config, skips=(32,), continue_from=tmp_path / "16", run_dir=tmp_path / "again")
    with pytest.raises(UserError, match=r"a FCN with skips=\[32, 16\], this one has skips=\[32\]"):
        experiment.build(experiment.resolve(config))


@pytest.mark.exhaustive
def test_a_run_that_is_broken_off_ends_bit_for_bit_the_same(folder, tmp_path, few_pictures, monkeypatch):
    fields = {"dataset": str(folder), "smoke": True, "phases": (settings.Phase("all", 2),), "checkpoint_every": 1}
    unbroken = experiment.main(settings.change(experiment.Config(), **fields, run_dir=tmp_path / "unbroken"))
    read = settings.SegmentationImages.batches

    def breaking(self, *args):
        def from_step(start):
            for step, batch in enumerate(read(self, *args)(start), start):
                if step == 2:
                    raise RuntimeError("cut")
                yield batch

        return from_step

    config = settings.change(experiment.Config(), **fields, run_dir=tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(settings.SegmentationImages, "batches", breaking)
        with pytest.raises(RuntimeError, match="cut"):
            experiment.main(config)
    assert experiment.main(config) == unbroken
    models_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert models_of[0] == models_of[1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"skips": (8, 32)}, "--skips 8 32: give strides, coarse to fine"), ({"dataset": "nowhere"}, "no such folder")],
)
def test_what_cannot_be_is_one_line(folder, tmp_path, values, expected):
    fields = {"dataset": str(folder), "smoke": True, "run_dir": tmp_path / "run", **values}
    with pytest.raises(UserError, match=expected):
        experiment.main(settings.change(experiment.Config(), **fields))
