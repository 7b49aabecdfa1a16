"""Patience of the loop: the end of a run, its resumption, and the scores that count as better."""

import dataclasses
import json

import pytest
import tiny

from cnnjax import fit, optim, report, sharding

PER_EPOCH = 5


def train(folder, scores, patience, epochs=8, head=0):
    """Epochs that run, and the best one; epoch i reports ``scores[i - 1]``, and the first phase has ``head`` epochs."""
    steps = [head * PER_EPOCH, (epochs - head) * PER_EPOCH]
    phases = tuple(optim.Phase(f"p{i}", n, ((".*", tiny.learning_rate),)) for i, n in enumerate(steps) if n)
    plan = tiny.plan(phases=phases)
    mesh, seen = sharding.make_mesh(), []
    with report.Run(folder, {}, {}) as run:
        settings = fit.Settings(16, patience=patience)
        for epoch in fit.epochs(plan, tiny.variables(), tiny.batches, mesh, run, settings):
            seen.append(epoch.index)
            epoch.report({"score": scores[epoch.index - 1]}, best="score")
        best, _ = fit.best(plan, tiny.variables(), mesh, run)
    return seen, best // PER_EPOCH


@pytest.mark.parametrize(
    ("scores", "patience", "head", "ends", "best"),
    [
        ([1, 2, 3, 2, 1, 0, 9, 9], 2, 0, 5, 3),
        ([1, 1, 1, 1, 1, 1, 1, 1], 3, 0, 4, 1),  # an equal score is not better
        pytest.param([1, 2, 3, 2, 1, 0, 9, 9], 0, 0, 8, 7, marks=pytest.mark.exhaustive),
        ([9, 1, 1, 1, 2, 3, 3, 3], 2, 2, 4, 1),  # two bad epochs of the last phase: the best epoch is in the first
        pytest.param([9, 1, 1, 10, 2, 3, 3, 3], 2, 2, 6, 4, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_ends_when_its_patience_does_and_stays_ended(tmp_path, scores, patience, head, ends, best):
    assert train(tmp_path, scores, patience, head=head) == ([*range(1, ends + 1)], best)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines if "phase" in line] == scores[:ends]
    assert train(tmp_path, scores, patience, head=head) == ([ends], best)  # started again, it only reports


def test_every_sum_that_the_loss_returns_is_logged(tmp_path):
    """The sums become the task's figures of training, among them the loss that is minimized."""
    plan = tiny.plan(steps=PER_EPOCH)
    inner = plan.task

    def loss_fn(variables, batch, key):
        loss, (state, sums) = inner.loss_fn(variables, batch, key)
        return loss + 1, (state, {**sums, "brightness": 16 * 0.25 * batch["image"].shape[0]})

    def figures(sums, rows):
        assert not rows
        return {**inner.figures(sums, rows), "brightness": float(sums["brightness"]) / float(sums["count"])}

    task = dataclasses.replace(inner, loss_fn=loss_fn, figures=figures)
    with report.Run(tmp_path, {}, {}) as run:
        settings = fit.Settings(16, log_every=1)
        plan = dataclasses.replace(plan, task=task)
        for epoch in fit.epochs(plan, tiny.variables(), tiny.batches, sharding.make_mesh(), run, settings):
            epoch.report({"score": 0}, best="score")
        lines = [line for line in run.records() if "phase" not in line]
    assert len(lines) == PER_EPOCH
    for line in lines:
        assert {"train/loss", "train/accuracy", "train/top5", "train/brightness", "grad_norm", "rate"} <= line.keys()
        assert line["train/brightness"] == 4
        assert line["train/loss"] > 1
