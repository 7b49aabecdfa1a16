"""Comparison of networks: one budget, every figure, resumption of a stopped run, mistakes in one line."""

import json
import re

import compare
import pytest

from cnnjax import settings
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")


def config_of(**values):
    """Config with these values, which may be fields of its groups."""
    return settings.change(compare.Config(), **values)


@pytest.mark.exhaustive
def test_smoke_leaves_every_figure(tmp_path, capsys):
    config = config_of(run_dir=tmp_path, smoke=True)
    summary = compare.main(config)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["lenet5_modern/parameters"] == 61_706
    for model in ("lenet5_modern", "digits_cnn"):
        assert 0 <= summary[f"{model}/test/accuracy"] <= 1
        assert summary[f"{model}/images_per_second"] > 0
        own = json.loads((tmp_path / f"{model}-seed0" / "summary.json").read_text())
        assert own["test/accuracy"] == summary[f"{model}/test/accuracy"]
    assert (tmp_path / "comparison.png").stat().st_size > 0
    assert re.search(r"lenet5_modern .* 61,706", capsys.readouterr().out)

    # Again: the runs that ended are kept.
    metrics = tmp_path / "digits_cnn-seed0" / "metrics.jsonl"
    before = metrics.read_bytes()
    again = compare.main(config)
    assert metrics.read_bytes() == before
    assert again["digits_cnn/test/accuracy"] == summary["digits_cnn/test/accuracy"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": ("resnet51",)}, "unknown model 'resnet51'"),
        ({"models": ()}, "--models takes different names, got none"),
        ({"models": ("vgg16", "vgg16")}, "--models takes different names, got vgg16 vgg16"),
        ({"seeds": 0}, "--seeds must be above 0, got 0"),
    ],
)
def test_an_impossible_choice_is_one_error(change, says, tmp_path):
    with pytest.raises(UserError) as error:
        compare.main(config_of(run_dir=tmp_path / "new", **change))
    assert says in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.exhaustive
def test_networks_see_images_of_the_size_that_was_asked_for(tmp_path):
    """Digits are arrays of 8×8, which are resized, too."""
    config = config_of(models=("lenet5_modern",), epochs=1, rounds=1, steps=1, run_dir=tmp_path)
    assert compare.main(config)["lenet5_modern/parameters"] == 61_706
    splits = compare.classify.load_data(compare.run_config(config, "lenet5_modern", 0))
    assert splits.train[0]["image"].shape == splits.test[0]["image"].shape == (32, 32, 1)


def test_what_cannot_run_is_refused_before_anything_is_trained_or_written(tmp_path):
    with pytest.raises(UserError, match=r"inception_v3 cannot take the images of digits: .*at least 75 by 75"):
        compare.main(config_of(models=("digits_cnn", "inception_v3"), run_dir=tmp_path / "new"))
    with pytest.raises(UserError, match="nosuch"):
        compare.main(config_of(dataset="nosuch", run_dir=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
