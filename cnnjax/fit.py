"""The loop that every training script shares: resume, train, log, save, stop on request.

A script drives it and evaluates each epoch itself::

    for epoch in fit.epochs(plan, variables, batches, mesh, run, settings):
        epoch.report(scores(epoch.variables), best="valid/accuracy")
"""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cnnjax import checkpoint, optim, report, sharding, train
from cnnjax.types import Batch, PyTree, UserError


@dataclass(frozen=True)
class Settings:
    """Rhythm of a run: logging, checkpoints, patience.

    Attributes:
      batch_size: images in the global batch, for the images/s shown.
      log_every: steps between lines of training metrics.
      checkpoint_every: steps between checkpoints within an epoch; 0: only after each epoch.
      keep_last: newest checkpoints kept, beside the best one.
      patience: epochs of the last phase without a better score than all before, after which the run ends; 0: never.
    """

    batch_size: int
    log_every: int = 10
    checkpoint_every: int = 0
    keep_last: int = 2
    patience: int = 0


@dataclass
class Epoch:
    """A finished epoch; ``report`` must be called once before the next begins.

    Attributes:
      index: epochs done.
      step: updates done.
      variables: values to evaluate (the moving average, if the plan keeps one).
    """

    index: int
    step: int
    phase: str
    variables: PyTree
    scores: dict[str, float] | None = None
    score: float | None = None

    def report(self, scores: Mapping[str, float], best: str) -> None:
        """Records the scores of the epoch; the checkpoint with the highest ``scores[best]`` is kept."""
        self.scores, self.score = dict(scores), scores[best]


def epochs(
    plan: train.Plan,
    variables: PyTree,
    batches: Callable[[int], Iterator[Batch]],
    mesh: Mesh,
    run: report.Run,
    settings: Settings,
) -> Iterator[Epoch]:
    """Trains to the end of the plan, or of its patience, from the newest checkpoint in the run folder if there is one.

    SIGTERM and SIGINT save and end the process (exit status 0 and 130). The last ``Epoch`` is yielded again by a run
    that was already complete, with its state restored, so that a script can always close its report.

    Args:
      variables: initial values (host or device), used where there is no checkpoint.
      batches: step → this process's batches from there on.

    Raises:
      UserError: the newest checkpoint is from after the end of the plan, or of another network.
    """
    with _stop_request() as stop, contextlib.ExitStack() as closing:
        checkpoints = checkpoint.Checkpoints(run.dir / "checkpoints", run.config, keep_last=settings.keep_last)
        closing.callback(checkpoints.close)
        restored = checkpoints.restore(lambda step: train.abstract_state(plan, variables, mesh, step))
        start, state = restored or (0, sharding.place(train.init_state(plan, variables), mesh))
        if start > plan.total_steps:
            raise UserError(f"{run.dir} is at step {start}, and the plan ends at step {plan.total_steps}: more epochs?")
        run.start(start)
        bar = report.Progress(plan.total_steps, settings.batch_size, start)
        closing.callback(bar.close)
        if restored:
            bar.say(f"resuming {run.dir} at step {start} of {plan.total_steps}")
        log = _Log(plan, run, bar, settings)
        # It must give the same answer when it is asked twice about a step.
        stopped = functools.lru_cache(maxsize=1)(functools.partial(_stopped, stop))

        def interrupt(step: int) -> bool:
            due = settings.checkpoint_every and step % settings.checkpoint_every == 0
            return stopped(step) or bool(due)

        def is_over(step: int) -> bool:
            best, begin = checkpoints.best_step, plan.total_steps - plan.phases[-1].steps
            if not settings.patience or best is None:
                return False
            return step - max(best, begin) >= settings.patience * plan.steps_per_epoch

        if start == plan.total_steps or is_over(start):
            yield Epoch(start // plan.steps_per_epoch, start, plan.phases[-1].name, state.variables)
            return
        for point in train.epochs(plan, state, batches, mesh, on_step=log.step, interrupt=interrupt):
            epoch = Epoch(point.index, point.step, point.phase, point.state.variables)
            if point.finished:
                yield epoch
                log.epoch(epoch)
            run.flush()
            checkpoints.save(point.step, point.state, epoch.score)
            if point.finished and is_over(point.step):
                bar.say(f"no better score in {settings.patience} epochs: ended at step {point.step}")
                return
            if stopped(point.step):
                checkpoints.wait()
                bar.say(f"stopped at step {point.step} of {plan.total_steps}, saved: the same command goes on")
                sys.exit(130 if stop.signal == signal.SIGINT else 0)


def best(plan: train.Plan, variables: PyTree, mesh: Mesh, run: report.Run) -> tuple[int, PyTree]:
    """Step and variables (to evaluate) of the checkpoint with the highest score in the run folder."""
    with contextlib.closing(checkpoint.Checkpoints(run.dir / "checkpoints", run.config)) as checkpoints:
        step, state = checkpoints.best(lambda step: train.abstract_state(plan, variables, mesh, step))
    return step, state.variables


def _stop_request() -> contextlib.AbstractContextManager[checkpoint.StopRequest]:
    # Several processes must agree on the step to stop at: JAX's own watch on SIGTERM makes them, and must keep it.
    return contextlib.nullcontext(checkpoint.StopRequest()) if jax.process_count() > 1 else checkpoint.stop_on_signal()


def _stopped(stop: checkpoint.StopRequest, step: int) -> bool:
    return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else bool(stop)


class _Log:
    """Turns the metrics of steps and epochs into lines, curves and the progress bar."""

    def __init__(self, plan: train.Plan, run: report.Run, bar: report.Progress, settings: Settings) -> None:
        self.plan, self.run, self.bar, self.settings = plan, run, bar, settings

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        loss = float(metrics["mean_loss"])
        self.bar.step(step, loss=loss)
        if step % self.settings.log_every:
            return
        phase, start = self.plan.phase_of(step - 1)
        rates = optim.rates(phase, step - 1 - start)
        named = {"rate": next(iter(rates.values()))} if len(rates) == 1 else {f"rate {k}": v for k, v in rates.items()}
        # The loss that is minimized, auxiliary heads included, in place of the task's.
        found = {f"train/{name}": value for name, value in self.plan.task.figures(metrics["sums"], {}).items()}
        self.run.log(step, {**found, "train/loss": loss, "grad_norm": float(metrics["grad_norm"]), **named})
        self.run.board(step, {"speed/images_per_second": self.bar.images_per_second})

    def epoch(self, epoch: Epoch) -> None:
        if epoch.scores is None:
            raise RuntimeError(f"epoch {epoch.index} was not reported: call epoch.report(scores, best) in the loop")
        self.run.log(epoch.step, epoch.scores, epoch=epoch.index, phase=epoch.phase)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in epoch.scores.items())
        self.bar.say(f"epoch {epoch.index} ({epoch.phase}): {shown}")
