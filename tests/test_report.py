"""Run folder: atomic, resumable, owned by one process and one configuration."""

import json

import pytest

from cnnjax import report
from cnnjax.types import UserError

CONFIG = {"rate": 0.1, "sizes": [1, 2], "threads": 8}


def test_metrics_beyond_the_checkpoint_are_dropped_and_torn_lines_too(tmp_path):
    with report.Run(tmp_path, CONFIG, {}) as run:
        run.start(0)
        for step in range(1, 6):
            run.log(step, {"train/loss": 1 / step})
        run.flush()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    with report.Run(tmp_path, CONFIG, {}) as run:
        run.start(3)
        run.log(4, {"train/loss": 0.25}, epoch=1)
        assert [record["step"] for record in run.records()] == [1, 2, 3, 4]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 4, "epoch": 1, "train/loss": 0.25}
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


def test_another_configuration_is_refused_naming_each_difference(tmp_path):
    with report.Run(tmp_path, CONFIG, {"train": 10}):
        pass
    with report.Run(tmp_path, {**CONFIG, "threads": 1}, {"train": 10}, may_differ=("threads",)):
        pass
    with pytest.raises(UserError, match=r"rate was 0.1 and is 0.2; train was 10 and is 11: choose"):
        report.Run(tmp_path, {**CONFIG, "rate": 0.2}, {"train": 11})
    assert json.loads((tmp_path / "config.json").read_text())["rate"] == 0.1


def test_data_may_lie_elsewhere_if_it_is_the_same(tmp_path):
    def opened(dataset, fingerprint):
        facts = {"data": fingerprint}
        with report.Run(tmp_path, {**CONFIG, "dataset": dataset}, facts, located=("dataset",)):
            pass

    opened("photos", "1a")
    opened("/mnt/photos/", "1a")
    with pytest.raises(UserError, match="dataset was 'photos' and is '/mnt/photos/'; its images or labels were others"):
        opened("/mnt/photos/", "2b")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "dataset": "a", "facts": {}}))
    opened("a", "1a")  # a folder of a version that knew no fingerprints
    with pytest.raises(UserError, match="dataset was 'a' and is 'b'"):
        opened("b", "1a")


def test_settings_that_an_older_version_lacked_have_their_defaults(tmp_path):
    with report.Run(tmp_path, CONFIG, {}):
        pass
    with report.Run(tmp_path, {**CONFIG, "keep": "best"}, {}, defaults={"keep": "best"}):
        pass
    with pytest.raises(UserError, match="keep was 'best' and is 'last'"):
        report.Run(tmp_path, {**CONFIG, "keep": "last"}, {}, defaults={"keep": "best"})


def finished(folder):
    """Folder of a run with a checkpoint and metrics."""
    with report.Run(folder, CONFIG, {}) as run:
        run.start(0)
        run.log(1, {"train/loss": 0.5})
        (folder / "checkpoints" / "1").mkdir(parents=True)
        (folder / "checkpoints" / "1" / "array").write_text("1")
        (folder / "checkpoints" / "damaged-2").mkdir()
    return folder


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_another_run_is_taken_over_once_and_left_as_it_is(tmp_path):
    origin = finished(tmp_path / "origin")
    before = content(origin)
    with report.Run(tmp_path / "new", CONFIG, {}) as run:
        (run.dir / "checkpoints.part").mkdir()  # of a copy that was broken off
        run.take_over(origin)
        assert [each["train/loss"] for each in run.records()] == [0.5]
        assert [path.name for path in (run.dir / "checkpoints").iterdir()] == ["1"]
        (run.dir / "checkpoints" / "1" / "array").write_text("2")
        run.take_over(origin)
        assert (run.dir / "checkpoints" / "1" / "array").read_text() == "2"
    assert content(origin) == before


def test_a_run_that_is_running_or_without_steps_is_not_taken_over(tmp_path):
    origin = finished(tmp_path / "origin")
    with report.Run(tmp_path / "new", CONFIG, {}) as new:
        with (
            report.Run(origin, CONFIG, {}),
            pytest.raises(UserError, match="origin is in use by another process"),
        ):
            new.take_over(origin)
        with report.Run(tmp_path / "empty", CONFIG, {}) as empty:
            pass
        with pytest.raises(UserError, match="empty has no checkpoint to go on from"):
            new.take_over(empty.dir)
    with pytest.raises(UserError, match="choose another --run-dir, or go on from it in a new one by --continue-from"):
        report.Run(origin, {**CONFIG, "rate": 0.2}, {})


def test_one_process_at_a_time(tmp_path):
    with report.Run(tmp_path, CONFIG, {}), pytest.raises(UserError, match="in use by another process"):
        report.Run(tmp_path, CONFIG, {})
    with report.Run(tmp_path, CONFIG, {}):
        pass


def test_damaged_or_missing_configuration_is_an_error(tmp_path):
    with report.Run(tmp_path, CONFIG, {}) as run:
        run.start(0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        report.Run(tmp_path, CONFIG, {})
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"without config\.json"):
        report.Run(tmp_path, CONFIG, {})


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        report.Run(tmp_path / "file" / "run", CONFIG, {})


def test_tensorboard_gets_the_same_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with report.Run(tmp_path, CONFIG, {}) as run:
        run.start(0)
        run.log(1, {"train/loss": 0.5})
        run.log(2, {"train/loss": 0.25})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def test_scores_are_those_reported_after_a_step(tmp_path):
    with report.Run(tmp_path, CONFIG, {}) as run:
        run.start(0)
        run.log(4, {"train/loss": 1.0})
        run.log(4, {"valid/loss": 0.5, "valid/accuracy": 0.75}, epoch=1, phase="all")
        run.log(8, {"valid/loss": 0.4, "valid/accuracy": 1.0}, epoch=2, phase="all")
        assert run.scores(4) == {"valid/loss": 0.5, "valid/accuracy": 0.75}


def test_table_shows_every_value(capsys):
    report.table("title", [{"name": "a", "value": 0.5}, {"name": "b", "value": 12}])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("title", "name", "0.5000", "12"))


def test_text_in_a_table_is_literal(capsys):
    report.table("a [b]", [{"[/c]": "tin [/can]", "$_": "cup [red]", "bytes": "caf\udce9"}])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a [b]", "[/c]", "tin [/can]", "$_", "cup [red]", r"caf\xe9"))
