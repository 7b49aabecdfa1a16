"""tasks.super_resolve, its patches, and experiments/super_resolution.py."""

import json

import evaluate
import export
import jax
import numpy as np
import predict
import pytest
import super_resolution as experiment
from PIL import Image

from cnnjax import models, serving, settings, sharding, train
from cnnjax.data import patches, pipeline, sources
from cnnjax.metrics import restoration
from cnnjax.ops import resize
from cnnjax.tasks import classify, super_resolve
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")

RNG = np.random.default_rng(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (12, 15, 3), np.uint8)).resize((75, 60), Image.Resampling.BICUBIC)
)


def test_the_small_image_is_pillows():
    pair = patches.central_patch(12, 4)({"image": PHOTO, "label": 3})
    assert pair.keys() == {"image", "target"}
    np.testing.assert_array_equal(pair["target"], PHOTO[6:54, 13:61])
    small = Image.fromarray(PHOTO[6:54, 13:61]).resize((12, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pair["image"], np.asarray(small))


def test_random_squares_are_parts_of_the_photo_in_all_directions():
    transform, seen = patches.random_patch(10, 2), set()
    for seed in range(60):
        pair = transform(np.random.default_rng(seed), {"image": PHOTO})
        np.testing.assert_array_equal(pair["image"], patches.shrunk(pair["target"], 2))
        for turn in range(4):
            for mirrored in (False, True):
                back = np.rot90(pair["target"][:, ::-1] if mirrored else pair["target"], turn)
                windows = np.lib.stride_tricks.sliding_window_view(PHOTO[..., 0], (20, 20))
                if (windows == back[..., 0]).all((2, 3)).any():
                    seen.add((turn, mirrored))
    assert len(seen) == 8
    with pytest.raises(UserError, match="an image of 75×60 pixels has no part of 80×80: take a smaller --patch"):
        patches.random_patch(40, 2)(np.random.default_rng(0), {"image": PHOTO})


@pytest.fixture(scope="module")
def network():
    model = models.create("edsr", blocks=1, features=4)
    return model, model.init(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))


def batch(n=3):
    pair = patches.random_patch(12, 2)
    return sources.stack([pair(np.random.default_rng(i), {"image": PHOTO}) for i in range(n)])


def test_the_loss_is_the_mean_absolute_error(network):
    model, variables = network
    found = batch()
    images = found["image"] / np.float32(255)
    task = super_resolve.task(model, classify.unit)
    loss, (_, sums) = task.loss_fn(variables, {**found, "image": images}, jax.random.key(0))
    bicubic = resize.bicubic(images, (24, 24))  # as which the network starts
    assert loss == pytest.approx(float(np.abs(bicubic - found["target"] / 255).mean()), rel=1e-4)
    assert task.figures(sums, {})["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_evaluation_is_on_8_bits_without_the_border(network):
    model, variables = network
    task, found = super_resolve.task(model, classify.unit), batch()
    mesh = sharding.make_mesh(jax.devices()[:1])
    source = sources.Arrays(found, ("photo",))
    step = train.make_eval_step(task.eval_fn, mesh)
    each = [
        task.figures(*train.evaluate(step, variables, pipeline.eval_batches(source, size), mesh)) for size in (3, 1, 2)
    ]
    assert each[0]["gain"] == pytest.approx(0, abs=1e-3)
    for other in each[1:]:
        assert other == pytest.approx(each[0], rel=1e-6)
    bicubic = np.asarray(resize.bicubic(found["image"].astype(np.float32), (24, 24))).round().clip(0, 255)
    values = [
        float(restoration.psnr(*map(restoration.luminance, (x, y)), border=2))
        for x, y in zip(bicubic, found["target"], strict=True)
    ]
    assert each[0]["bicubic_psnr"] == pytest.approx(np.mean(values), abs=0.02)
    predicted = task.predict(variables, found["image"])["image"]
    assert (predicted.shape, predicted.dtype) == ((3, 24, 24, 3), np.uint8)
    assert task.describe({"image": predicted[0]}, None) == {"size": [24, 24]}


@pytest.mark.exhaustive
def test_a_run_leaves_its_figures_and_picture(tmp_path, few_pictures):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            size = (20, 20) if i == 0 else (64, 48)
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "photos" / name / f"{i}.png")
    fields = {"dataset": str(tmp_path / "photos"), "smoke": True, "run_dir": tmp_path / "run"}
    summary = experiment.main(settings.change(experiment.Config(), **fields))
    assert {"test/psnr", "test/ssim", "test/bicubic_psnr", "test/gain", "valid/psnr"} <= summary.keys()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "before_after.png").is_file()

    with pytest.raises(UserError, match="run enlarges photos of any size, a program takes one"):
        export.main(settings.change(export.Config(), run=tmp_path / "run", run_dir=tmp_path / "exported"))
    fields = {"dataset": str(tmp_path / "photos"), "run": tmp_path / "run", "run_dir": tmp_path / "scored"}
    with pytest.raises(UserError, match="scores it on its test split"):
        evaluate.main(settings.change(evaluate.Config(), **fields))
    with pytest.raises(UserError, match="knows no classes"):
        serving.base(tmp_path / "run")

    photo = tmp_path / "photos" / "cat" / "3.png"
    fields = {"images": (str(photo),), "run": tmp_path / "run", "run_dir": tmp_path / "enlarged"}
    predict.main(settings.change(predict.Config(), **fields))
    (entry,) = json.loads((tmp_path / "enlarged" / "predictions.json").read_text())["images"]
    served = serving.load(tmp_path / "run")
    with Image.open(photo) as small, Image.open(tmp_path / "enlarged" / entry["image"]) as large:
        assert (small.size, large.size, entry["size"]) == ((64, 48), (128, 96), [128, 96])
        whole = served.task.predict(served.variables, np.asarray(small)[None])["image"][0]
        assert np.abs(np.asarray(large).astype(int) - whole).max() <= 1  # roundings of 8 bits
    fields |= {"tile": 32, "overlap": 16, "run_dir": tmp_path / "tiled"}
    predict.main(settings.change(predict.Config(), **fields))
    with Image.open(tmp_path / "tiled" / entry["image"]) as large:
        assert np.abs(np.asarray(large).astype(int) - whole).max() <= 1
