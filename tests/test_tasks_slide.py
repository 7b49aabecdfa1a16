"""Detection by sliding: losses, both ways to look at a picture, and the experiment."""

import json

import detect_sliding as experiment
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import drawn

from cnnjax import models, nn, serving, settings
from cnnjax.ops.sliding import Windows
from cnnjax.tasks import localize, slide

CLASSES = tuple("abcde")


def output(logits, objectness, box, size=32):
    """Numbers of a window with this box, xyxy in pixels."""
    return np.concatenate([logits, [objectness], np.asarray(localize.encode(np.float32(box), size))]).astype(np.float32)


BATCH = {
    "image": np.zeros((3, 32, 32, 1), np.float32),
    "boxes": np.float32([[[8, 8, 24, 24]], [[0, 0, 0, 0]], [[8, 8, 24, 24]]]),
    "labels": np.int32([[1], [0], [2]]),
    "box_mask": np.array([[True], [False], [True]]),
    "example_mask": np.ones(3, np.float32),
}


class Constant:
    """Model that gives these numbers."""

    def __init__(self, numbers):
        self.numbers = jnp.asarray(numbers)

    def apply(self, variables, images, *, mutable=None, **_):
        return (self.numbers, {}) if mutable is None else ((self.numbers, {}), {})


def test_losses_and_figures_by_hand():
    right = output([0, 9, 0, 0, 0], 9, [8, 8, 24, 24])
    none = output([0, 0, 9, 0, 0], -9, [0, 0, 32, 32])
    wrong = output([9, 0, 0, 0, 0], 9, [0, 0, 16, 16])
    task = slide.task(Constant([right, none, wrong]), lambda x: x, CLASSES)
    sums, _ = jax.jit(task.eval_fn)({}, BATCH)
    figures = task.figures(jax.device_get(sums), {})
    assert figures == pytest.approx({"objectness": 1, "right": 2 / 3, "accuracy": 0.5, "iou": (1 + 64 / 448) / 2})
    side = np.log1p(np.exp(-9))
    box = 10 * (2 * 0.25**2 + 0) / 4  # the center is off by a quarter of the window both ways, the sides are right
    by_hand = [side + np.log1p(4 * np.exp(-9)), side, side + np.log(np.exp(9) + 4) + box]

    @jax.jit
    @jax.value_and_grad
    def loss(numbers):
        return slide.task(Constant(numbers), lambda x: x, CLASSES).loss_fn({}, BATCH, jax.random.key(0))[0]

    value, grads = loss(np.stack([right, none, wrong]))
    assert float(value) == pytest.approx(np.mean(by_hand), rel=1e-5)
    # Where there is no object, neither class nor box has a gradient.
    assert (np.asarray(grads)[1] != 0).tolist() == [False] * 5 + [True] + [False] * 4


def test_the_best_windows_become_boxes_in_the_picture():
    windows = Windows(32, 4, (1.0, 0.5))
    first, same, border = (
        output(logits, objectness, box)
        for logits, objectness, box in (
            ([0, 0, 5, 0, 0], 3, [10, 8, 22, 24]),
            ([0, 5, 0, 0, 0], 2, [6, 8, 18, 24]),  # the same box, seen by the next window
            ([5, 0, 0, 0, 0], 1, [8, 8, 24, 24]),  # in the corner of the picture
        )
    )
    large = output([0, 0, 0, 0, 5], 4, [8, 8, 24, 24])

    def apply(variables, images):
        rows, columns = windows.grid(*images.shape[1:3])[0].shape
        numbers = np.full((len(images), rows, columns, 10), -9, np.float32)
        if images.shape[1] == 96:  # scale 1: 64 pixels, and 16 on either side
            numbers[0, 4, 8], numbers[0, 4, 9], numbers[0, 0, 0] = first, same, border
        else:
            numbers[1, 2, 3] = large
        return jnp.asarray(numbers)

    detect = slide.detector(apply, lambda x: x, windows, objectness=0.5, overlap=0.6, most=4)
    found = jax.device_get(jax.jit(detect)({}, np.zeros((2, 64, 64, 1), np.uint8)))
    assert found["valid"].tolist() == [[True, True, False, False], [True, False, False, False]]
    assert found["labels"][0, :2].tolist() == [2, 0]
    np.testing.assert_allclose(found["boxes"][0, :2], [[26, 8, 38, 24], [0, 0, 8, 8]], atol=1e-4)
    # 16 pixels are half a window; a window of scale 0.5 sees 64 pixels of the picture.
    np.testing.assert_allclose(found["boxes"][1, 0], np.array([12 - 16 + 8, 8 - 16 + 8, 12 + 8, 8 + 8]) * 2, atol=1e-4)
    assert found["scores"][1, 0] == pytest.approx(1 / (1 + np.exp(-4)))


def test_both_ways_give_the_same_boxes():
    model = slide.network(lambda **fields: models.create("lenet5_modern", **fields), CLASSES)
    variables = drawn(model, (32, 32, 1))
    made, converted = nn.to_fully_convolutional(model, variables, (32, 32, 1))
    windows = Windows(32, 4, (1.0, 0.7))
    images = np.random.default_rng(0).integers(0, 256, (2, 60, 75, 1), np.uint8)
    detect = [
        jax.jit(slide.detector(apply, lambda x: x / 255, windows, objectness=0.2, overlap=0.5))(values, images)
        for apply, values in (
            (slide.one_by_one(model, windows), variables),
            (slide.in_one_pass(made), converted),
        )
    ]
    one, other = jax.device_get(detect)
    assert one["valid"].sum() > 10
    np.testing.assert_array_equal(one["valid"], other["valid"])
    np.testing.assert_array_equal(one["labels"], other["labels"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-2)
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)


@pytest.mark.exhaustive
def test_a_run_leaves_every_figure_and_goes_on(tmp_path, one_device, capsys):
    config = settings.change(experiment.Config(), run_dir=tmp_path / "run", smoke=True)
    summary = experiment.main(config)
    assert {"test/map50", "test/right", "test/largest_difference_px", "speedup", "valid/iou"} <= summary.keys()
    assert summary["test/largest_difference_px"] <= 1e-2
    assert summary["speedup"] > 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"detections.png", "crops.png", "metrics.jsonl", "checkpoints", "config.json", "model.json"} <= names
    again = experiment.main(config)
    measured = {"speedup", "fcn_ms", "sliding_ms"}
    assert {k: v for k, v in again.items() if k not in measured} == {
        k: v for k, v in summary.items() if k not in measured
    }
    assert "times faster" in capsys.readouterr().out
    served = serving.load(tmp_path / "run")
    crop = np.zeros((1, 32, 32, 1), np.uint8)
    found = {name: x[0] for name, x in served.predict(served.variables, crop).items()}
    assert served.task.describe(found, 2).keys() == {"objectness", "predictions", "box"}
