"""tasks.transfer and experiments/flowers.py: frozen is frozen, features once, rules by part, kill and resume."""

import json

import flowers
import jax
import kills
import numpy as np
import pytest
import transfer_cost

from cnnjax import checkpoint, experiment, models, optim, pretrained, serving, settings, sharding, train
from cnnjax.data import sources
from cnnjax.data.formats import folders
from cnnjax.tasks import classify, transfer
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")

BASE = models.create("mobilenet_v1", num_classes=None, width=0.25)
NAMES = ("stem", *(f"block{i}" for i in range(1, 14)))


@pytest.fixture(scope="module")
def base_variables():
    return jax.jit(BASE.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))


def test_stages_are_in_the_order_of_the_forward_pass():
    assert transfer.stages(BASE) == NAMES
    assert transfer.stages(models.create("resnet18", num_classes=None)) == (
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "stage4",
    )


def test_rules_freeze_below_a_part_and_slow_down_towards_the_image():
    def rates(train_from, layer_decay=1.0, base_factor=1.0):
        factors = {"base_factor": base_factor, "layer_decay": layer_decay}
        rules = transfer.rules(("a", "b", "c"), train_from, lambda factor: factor, **factors)
        paths = ["head/dense/kernel", *(f"base/{name}/kernel" for name in "abc")]
        index = optim.match(paths, rules)
        return [rules[index[path]][1] for path in paths]

    assert rates("head") == [1, None, None, None]
    assert rates("all") == [1, 1, 1, 1]
    assert rates("b") == [1, None, 1, 1]
    assert rates("all", 0.5) == [1, 0.125, 0.25, 0.5]
    assert rates("c", 0.5) == [1, None, None, 0.5]
    assert rates("b", base_factor=0.1) == [1, None, 0.1, 0.1]
    assert rates("all", 0.5, base_factor=0.25) == [1, 0.03125, 0.0625, 0.125]
    with pytest.raises(UserError, match=r"head, all or a part of the base \(a, b, c\); got 'd'"):
        rates("d")


def batches(images, size=8):
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
        yield {"image": filled, "example_mask": (np.arange(size) < len(part)).astype(np.float32)}


def test_a_frozen_step_on_features_is_the_step_on_images(base_variables):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (11, 32, 32, 3), np.uint8), rng.integers(0, 3, 11).astype(np.int32)
    mesh = sharding.make_mesh()
    features = pretrained.features(BASE, base_variables, classify.unit, batches(images), mesh)
    _, endpoints = BASE.apply(base_variables, classify.unit(images))
    np.testing.assert_allclose(features, endpoints["pooled"], rtol=1e-4, atol=1e-5)

    model = transfer.Transfer(BASE, 3)
    variables = transfer.variables(model, base_variables, jax.random.key(1))
    rules = transfer.rules(NAMES, "head", lambda factor: lambda step: factor * 0.1)
    task = transfer.task(model, classify.unit, ("a", "b", "c"))
    plan = train.Plan(task, (optim.Phase("frozen", 2, rules),), optim.sgd(0.9), 2)
    states = []
    for inputs in ({"features": features[:8]}, {"image": np.asarray(classify.unit(images[:8]))}):
        state = sharding.place(train.init_state(plan, variables), mesh)
        step = train.make_train_step(plan, plan.phases[0], state, mesh)
        for _ in range(2):
            state, _ = step(state, sharding.shard_batch({**inputs, "label": labels[:8]}, mesh))
        states.append(jax.device_get(state))
    on_features, on_images = states
    heads = [state.params["head"]["dense"]["kernel"] for state in states]
    assert not np.allclose(heads[0], variables["params"]["head"]["dense"]["kernel"])
    np.testing.assert_allclose(heads[0], heads[1], rtol=1e-3, atol=1e-5)
    for state in (on_features, on_images):  # bit for bit
        jax.tree.map(np.testing.assert_array_equal, state.params["base"], variables["params"]["base"])
        jax.tree.map(np.testing.assert_array_equal, state.model_state["batch_stats"], variables["batch_stats"])


def test_cached_features_are_computed_once_and_again_where_the_file_is_damaged(tmp_path):
    calls, path = [], tmp_path / "cache" / "f.npz"

    def compute():
        calls.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    for _ in range(2):
        assert pretrained.cached(path, compute).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(calls) == 1
    content = bytearray(path.read_bytes())
    content[-200] ^= 255
    for damaged in (bytes(content), path.read_bytes()[:-30], b""):
        path.write_bytes(damaged)
        calls.clear()
        assert pretrained.cached(path, compute).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == ["f.npz"]


def test_class_weights_scale_each_example_s_loss():
    loss = classify.weighted(classify.cross_entropy, np.array([1.0, 3.0], np.float32))
    logits = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    plain = classify.cross_entropy(logits, np.array([0, 1]))
    np.testing.assert_allclose(loss(logits, np.array([0, 1])), plain * np.array([1, 3]), rtol=1e-6)
    mixed = np.array([[0.25, 0.75], [1, 0]], np.float32)
    np.testing.assert_allclose(
        loss(logits, mixed), classify.cross_entropy(logits, mixed) * np.array([2.5, 1]), rtol=1e-6
    )


def test_balanced_weights_make_each_class_count_the_same(photos):
    folder = folders.Folder.open(photos)
    chosen = np.array([0, 1, 2, 3, 4, 5, 30, 31, 60])  # 6 blue, 2 green, 1 red
    part = sources.Subset(folder, chosen)
    labels = sources.labels(part)
    assert labels.tolist() == [part[i]["label"] for i in range(9)] == [0] * 6 + [1] * 2 + [2]
    weights = classify.balanced(labels, 3)
    np.testing.assert_allclose(np.bincount(labels, weights[labels]), [3, 3, 3], rtol=1e-6)
    arrays = sources.Arrays({"image": np.zeros((9, 2, 2, 3), np.uint8), "label": labels}, folder.classes)
    assert sources.labels(sources.Subset(arrays, chosen[:3])).tolist() == [0, 0, 0]


# flowers.py


@pytest.fixture
def run(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))

    def run(folder="run", **changes):
        values = {"dataset": str(photos), "smoke": True, "run_dir": tmp_path / folder, **changes}
        return flowers.main(settings.change(flowers.Config(), **values)), tmp_path / folder

    return run


def test_flowers_trains_reports_and_goes_on(run, tmp_path, capsys):
    summary, folder = run()
    names = {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "plan.png",
        "curves.png",
        "confusion.png",
        "calibration.png",
    }
    assert names <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {"test/accuracy", "valid/accuracy", "test/calibration_error"} <= summary.keys()
    printed = capsys.readouterr().out
    assert "(?!base/).*" in printed
    assert "frozen" in printed
    assert len(list((tmp_path / "cache" / "features").glob("*.npz"))) == 2
    assert kept_accuracy(folder) == pytest.approx(summary["test/accuracy"])
    again, _ = run()
    assert again == summary


@pytest.mark.exhaustive
def test_flowers_with_every_augmentation_and_early_stop(run, tmp_path):
    on = {"random_crop": 0.5, "flip": True, "mixup": 0.2, "cutmix": 1.0, "brightness": 0.1, "class_weights": True}
    phase = settings.Phase("fine-tune", 2, 0.01, 0.0, train_from="block12", layer_decay=0.5, schedule="cosine")
    summary, folder = run(patience=1, ema_decay=0.5, phases=(phase,), **on)
    assert not (tmp_path / "cache" / "features").exists()  # no image is seen twice
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = {line["step"]: line["valid/accuracy"] for line in lines if "phase" in line}
    assert summary["valid/accuracy"] == best[summary["steps"]] == max(best.values())
    assert kept_accuracy(folder) == pytest.approx(summary["test/accuracy"])


def kept_accuracy(folder):
    """Test accuracy of the network that the run kept, on the data of its config.json."""
    dataset = json.loads((folder / "config.json").read_text())["dataset"]
    config = flowers.resolve(settings.change(flowers.Config(), dataset=dataset, smoke=True))
    served = serving.load(folder)
    fields = flowers.load_data(config, pretrained.network(settings.SMOKE, random=True)).test.fields
    probabilities = jax.jit(served.predict)(served.variables, fields["image"])["probabilities"]
    return float((probabilities.argmax(-1) == fields["label"]).mean())


def test_learning_rates_are_the_familys_unless_they_are_given():
    phases = (
        settings.Phase("a", 1, train_from="head"),
        settings.Phase("b", 1),
        settings.Phase("c", 1, learning_rate=0.5, train_from="head"),
    )

    def rates(name):
        filled = transfer.with_learning_rates(phases, *transfer.learning_rates(name))
        return [phase.learning_rate for phase in filled]

    assert rates("xception") == [0.2, 0.01, 0.5]  # the chapter's
    assert rates("mobilenet_v1") == rates("resnet50") == [0.02, 0.004, 0.5]


@pytest.mark.parametrize(("per_epoch", "momentum"), [(1, 0.8), (9, 0.8), (20, 0.9), (100, 0.98), (10**6, 0.99)])
def test_statistics_of_norms_follow_within_an_epoch(per_epoch, momentum):
    base = models.create("mobilenet_v1", num_classes=None)
    assert transfer.norm_momentum(base, per_epoch) == pytest.approx(momentum)
    assert transfer.norm_momentum(models.create("vgg16"), per_epoch) is None
    given = settings.Base(settings.SMOKE, norm_momentum=0.0)  # 0 is a momentum, too
    assert given.tuned(pretrained.Network(None, base, {}), per_epoch).model.momentum == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_of_the_frozen_phase_are_kept_where_they_validate_better(run, keep, monkeypatch):
    make, validation = experiment.scorer, iter([0.9, 0.5])

    def scorer(*args):
        def score(variables, source, split):
            found = make(*args)(variables, source, split)
            valid = {"valid/accuracy": next(validation)} if split == "valid" else {}
            return found._replace(figures={**found.figures, **valid})

        return score

    monkeypatch.setattr(experiment, "scorer", scorer)
    summary, folder = run(keep=keep)
    assert (summary["steps"], summary["valid/accuracy"]) == {"best": (3, 0.9), "last": (6, 0.5)}[keep]
    base = pretrained.network(settings.SMOKE, random=True, num_classes=None).variables["params"]
    kept = serving.load(folder).variables["params"]["base"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), base, kept)
    assert jax.tree.all(same) == (keep == "best")
    assert kept_accuracy(folder) == pytest.approx(summary["test/accuracy"])


def test_a_phase_s_rates_follow_its_schedule():
    def rates(**options):
        chosen = settings.Phase("x", 3, 0.1, 0.5, base_factor=0.2, **options)
        (phase,) = transfer.phases((chosen,), NAMES, per_epoch=5)
        assert phase.steps == 15
        head, base = (schedule for _, schedule in phase.rules)
        return [[float(schedule(step)) for schedule in (head, base)] for step in (0, 7.5, 15)]

    np.testing.assert_allclose(rates(), [[0.1, 0.02], [0.1 / 4.75, 0.02 / 4.75], [0.1 / 8.5, 0.02 / 8.5]], rtol=1e-6)
    np.testing.assert_allclose(rates(schedule="cosine"), [[0.1, 0.02], [0.05, 0.01], [0, 0]], rtol=1e-6, atol=1e-9)


def test_features_are_of_the_base_as_published():
    def phase(name, train_from, on=True):
        return settings.Phase(name, 1, 0.1, 0.0, train_from, on)

    phases = (phase("a", "head"), phase("b", "head", False), phase("c", "head"), phase("d", "all"), phase("e", "head"))
    used = transfer.on_features(phases)
    assert used == [True, False, True, False, False]  # at e the base has changed


class Crash(Exception):
    """Exception in place of the death of the process: the run folder is left the same."""


@pytest.mark.exhaustive
def test_a_run_that_dies_before_at_or_after_the_seam_of_its_phases_goes_on_bit_for_bit(run, monkeypatch):
    options = {"checkpoint_every": 1, "ema_decay": 0.9, "random_crop": 0.5}  # images after features
    _, unbroken = run("unbroken", **options)
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    seam, last = (line["step"] for line in lines if "phase" in line)
    save = checkpoint.Checkpoints.save

    def dying(self, at, *args, **kwargs):
        save(self, at, *args, **kwargs)
        if at in deaths:
            deaths.remove(at)
            self.wait()
            raise Crash

    monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
    deaths = {seam - 1, seam, last - 1}
    while deaths:
        with pytest.raises(Crash):
            run("dies", **options)
    _, folder = run("dies", **options)
    assert kills.differences(folder, unbroken) == []


@pytest.mark.exhaustive
def test_a_step_over_the_frozen_base_is_cheap_and_an_epoch_on_features_cheaper(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    values = {"dataset": str(photos), "rounds": 3, "steps": 1, "smoke": True, "run_dir": tmp_path / "run"}
    found = transfer_cost.main(settings.change(transfer_cost.Config(), **values))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == found
    assert found["ratio"] <= 0.45
    assert found["epoch/features"] < found["step/fine-tune"]


def test_flowers_refuses_what_cannot_be(run):
    with pytest.raises(UserError, match=r"--random-crop must be above 0, at most 1, got 1\.5"):
        run(random_crop=1.5)
    with pytest.raises(UserError, match="a name of its own, got x, x"):
        run(phases=(settings.Phase("x", 1, 0.1, 0.0, "head"), settings.Phase("x", 1, 0.1, 0.0)))
    with pytest.raises(UserError, match="at least one phase with epochs"):
        run(phases=(settings.Phase("x", 0, 0.1, 0.0),))
    with pytest.raises(UserError, match="train from head, all or a part"):
        run(phases=(settings.Phase("x", 1, 0.1, 0.0, train_from="stage7"),))
