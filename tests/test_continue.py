"""Runs that go on: extended, moved, with their data elsewhere, as the start or the base of others."""

import json
import shutil
from pathlib import Path

import classify
import flowers
import jax
import kills
import numpy as np
import pytest
from PIL import Image

from cnnjax import serving, settings
from cnnjax.tasks import transfer
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device_in_module")

FLAGS = {"model": "digits_cnn", "image_size": 16, "batch_size": 16, "schedule": "inverse", "log_every": 1}


def train(folder, photos, **flags):
    """Summary of a run of classify.py; 3 steps in an epoch."""
    values = {**FLAGS, "dataset": str(photos), "epochs": 2, "run_dir": folder, **flags}
    return classify.main(settings.change(classify.Config(), **values))


@pytest.fixture(scope="module")
def origin(photos, tmp_path_factory, one_device_in_module):
    """Folder of a finished run of 2 epochs."""
    folder = tmp_path_factory.mktemp("continue") / "origin"
    train(folder, photos)
    return folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_extended_run_ends_as_one_that_was_longer_from_the_start(origin, photos, tmp_path):
    before = content(origin)
    summary = train(tmp_path / "longer", photos, epochs=4, continue_from=origin)
    assert train(tmp_path / "unbroken", photos, epochs=4) == summary
    assert kills.differences(tmp_path / "longer", tmp_path / "unbroken") == []
    assert content(origin) == before
    assert serving.load_card(tmp_path / "longer").origin == f"{origin}: its weights, optimizer and steps"
    assert serving.load_card(tmp_path / "unbroken").origin is None
    shutil.rmtree(tmp_path / "longer" / "checkpoints" / "12")
    assert train(tmp_path / "longer", photos, epochs=4, continue_from=origin) == summary  # killed, and given again


@pytest.mark.exhaustive
def test_another_rate_goes_on_and_another_optimizer_does_not(origin, photos, tmp_path):
    train(tmp_path / "slower", photos, epochs=3, learning_rate=1e-9, schedule="cosine", continue_from=origin)
    lines = [json.loads(line) for line in (tmp_path / "slower" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["rate"] for line in lines if "rate" in line]
    assert len(rates) == 9
    assert max(rates[6:]) <= 1e-9 < min(rates[:6])
    with pytest.raises(UserError, match=r"of another network or optimizer: .* opt_state/.*--continue-with weights"):
        train(tmp_path / "sgd", photos, epochs=3, optimizer="sgd", continue_from=origin)
    with pytest.raises(UserError, match="is at step 6, and the plan ends at step 3"):
        train(tmp_path / "shorter", photos, epochs=1, continue_from=origin)


@pytest.mark.exhaustive
def test_weights_alone_begin_a_new_run(origin, photos, tmp_path):
    flags = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-12}
    train(tmp_path / "new", photos, continue_from=origin, continue_with="weights", **flags)
    ours, theirs = (serving.load(folder).variables["params"] for folder in (tmp_path / "new", origin))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=0, atol=1e-9)), ours, theirs))
    assert serving.load_card(tmp_path / "new").origin == f"{origin}: its network"
    with pytest.raises(UserError, match="weights of a FashionCNN with width=32, this one has width=64"):
        train(tmp_path / "other", photos, continue_from=origin, continue_with="weights", model="fashion_cnn")


def test_a_run_may_move_and_so_may_its_data(origin, photos, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(origin, run)
    shutil.copytree(photos, data)
    summary = json.loads((origin / "summary.json").read_text())
    assert train(run, f"{data}/../data/") == summary
    Image.new("RGB", (50, 40)).save(data / "red" / "0.png")
    with pytest.raises(UserError, match="its images or labels were others"):
        train(run, data)


@pytest.mark.exhaustive
def test_the_network_of_a_run_is_a_base_for_another(origin, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))

    def transferred(folder, weights):
        phase = settings.Phase("frozen", 1, train_from="head")
        values = {"dataset": str(photos), "run_dir": folder, "weights": str(weights), "phases": (phase,)}
        flowers.main(settings.change(flowers.Config(), **values))
        assert serving.load_card(folder).origin == f"{weights}: its network without the top"
        return serving.load(folder).variables

    first = transferred(tmp_path / "first", origin)
    second = transferred(tmp_path / "second", tmp_path / "first")
    known = serving.load(origin).variables["params"]
    for variables in (first, second):
        base = transfer.base_variables(variables)["params"]
        assert base.keys() < known.keys()
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), base, {name: known[name] for name in base}))


@pytest.mark.parametrize(
    ("folder", "origin_folder", "message"),
    [
        ("new", "nowhere", "nowhere is not the folder of a run"),
        ("./run", "run", "run cannot go on from itself"),
    ],
)
def test_a_run_to_go_on_from_must_be_another_one(folder, origin_folder, message, origin, photos, tmp_path, monkeypatch):
    shutil.copytree(origin, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(photos=photos, folder=Path(folder), continue_from=Path(origin_folder))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_base_that_is_no_run_is_an_error(photos, tmp_path):
    values = {"dataset": str(photos), "weights": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"nowhere/.*: no such file; there is no such run folder"):
        flowers.main(settings.change(flowers.Config(), **values))
    with pytest.raises(UserError, match="is a run, which has its weights: leave out --file"):
        flowers.main(settings.change(flowers.Config(), **{**values, "file": tmp_path}))
