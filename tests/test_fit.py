"""The loop's patience: when it ends, where it goes on, what counts as better."""

import dataclasses
import json

import pytest
import tiny

from cnnjax import fit, optim, report, sharding

PER_EPOCH = 5


@dataclasses.dataclass(frozen=True)
class Config:
    """Of nothing."""


def train(folder, scores, patience, epochs=8, head=0):
    """Steps and scores of the epochs that are seen, ``scores`` being those of all by their number."""
    steps = [head * PER_EPOCH, (epochs - head) * PER_EPOCH]
    phases = tuple(optim.Phase(f"p{i}", n, ((".*", tiny.rate),)) for i, n in enumerate(steps) if n)
    plan = tiny.plan(phases=phases)
    mesh, seen = sharding.make_mesh(), []
    with report.Run(folder, Config(), {}) as run:
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
        ([1, 1, 1, 1, 1, 1, 1, 1], 3, 0, 4, 1),  # as good is not better
        ([1, 2, 3, 2, 1, 0, 9, 9], 0, 0, 8, 7),
        ([9, 1, 1, 1, 2, 3, 3, 3], 2, 2, 4, 1),  # two bad epochs of the last phase: the best one is of the first
        ([9, 1, 1, 10, 2, 3, 3, 3], 2, 2, 6, 4),
    ],
)
def test_a_run_ends_when_its_patience_does_and_stays_ended(tmp_path, scores, patience, head, ends, best):
    assert train(tmp_path, scores, patience, head=head) == ([*range(1, ends + 1)], best)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines if "phase" in line] == scores[:ends]
    assert train(tmp_path, scores, patience, head=head) == ([ends], best)  # started again, it only reports
