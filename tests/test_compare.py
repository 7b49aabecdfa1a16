"""The comparison of networks: one budget, every figure, goes on where it stopped, mistakes are one line."""

import json
import re

import compare
import pytest

from cnnjax.types import UserError


def test_smoke_leaves_every_figure(tmp_path, capsys):
    config = compare.Config(run_dir=tmp_path, smoke=True)
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
        compare.main(compare.Config(run_dir=tmp_path / "new", **change))
    assert says in str(error.value)
    assert not (tmp_path / "new").exists()
