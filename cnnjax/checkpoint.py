"""Checkpoints by Orbax: written in the background, verified when read, exact to resume from."""

import json
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cnnjax.types import PyTree, UserError


def checksums(tree: PyTree) -> dict[str, int]:
    """CRC-32 of the bytes of every leaf, by path: what tells a damaged checkpoint from a good one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    host = {jax.tree_util.keystr(path): np.ascontiguousarray(_local(leaf)) for path, leaf in leaves}
    return {path: zlib.crc32(array.reshape(-1).view(np.uint8).data) for path, array in host.items()}


def _local(leaf: Any) -> np.ndarray:
    # A replicated array of a multi-process run is not fully addressable, but each process holds all of it.
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)


def _together(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _rank(scores: Mapping[str, Any]) -> Any:
    """Of equal scores the first is the best; Orbax, which only sorts, would take the last."""
    return scores["score"], -scores.get("step", 0)


class Checkpoints:
    """The checkpoints of one run: the last ``keep_last`` and the best ``keep_best`` by score, of equal ones the first.

    Args:
      directory: made if it is missing.
      config: stored in every checkpoint, so that one is readable without its run folder.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], *, keep_last: int = 2, keep_best: int = 1) -> None:
        self.directory = directory.resolve()
        self.config = dict(config)
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep_last),
                preservation_policy.BestN(
                    get_metric_fn=_rank,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank,
            preservation_policy=policy,
            enable_async_checkpointing=True,
        )
        if jax.process_index() == 0:
            self._check_scores()
        _together("scores checked")
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Starts writing ``state``; returns when it may be donated or changed. A higher score is better.

        Raises:
          UserError: this one, or the one before it, cannot be written; so do ``wait`` and ``close``.
        """
        meta = {"config": self.config, "crc32": checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._check_room(step, state)
        with self._writing():
            self.manager.save(step, args=args, metrics=None if score is None else {"score": score, "step": step})

    def restore(self, target: Callable[[int], PyTree]) -> tuple[int, PyTree] | None:
        """The newest checkpoint that reads back with the checksums it was written with, or None if there is none.

        A damaged one is reported on stderr, set aside as ``damaged-<step>``, and the one before it is tried.

        Args:
          target: step → the state's structure as ``jax.ShapeDtypeStruct`` with shardings.

        Raises:
          UserError: there are checkpoints, and all of them are damaged.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, self._read(step, target(step))
            # Orbax and TensorStore raise every kind of exception, plain Exception too, for a damaged file.
            except Exception as error:
                self._set_aside(step, error)
                _together(f"checkpoint {step} set aside")
                self.manager.reload()
        if steps:
            raise UserError(
                f"every checkpoint in {self.directory} is damaged (steps {steps}): start again with another --run-dir"
            )
        return None

    @property
    def best_step(self) -> int | None:
        """Of the checkpoint with the highest score."""
        return self.manager.best_step()

    def best(self, target: Callable[[int], PyTree]) -> tuple[int, PyTree]:
        """The checkpoint with the highest score; as ``restore``, but an error if there is none, or it is damaged."""
        step = self.best_step
        try:
            if step is None:
                raise UserError("none has a score")
            return step, self._read(step, target(step))
        except Exception as error:  # as in restore
            raise UserError(f"the best checkpoint in {self.directory} cannot be read: {error}") from error

    def _read(self, step: int, target: PyTree) -> PyTree:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        restored = self.manager.restore(step, args=args)
        expected = restored["meta"]["crc32"]
        found = checksums(restored["state"])
        wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        if wrong:
            raise UserError(f"the checksums of {wrong[:5]} differ from those written")
        return restored["state"]

    def _check_scores(self) -> None:
        # Orbax reads all scores when it opens the folder, and would fail there on one damaged file.
        for path in self.directory.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(path.read_bytes())["score"]
            except (ValueError, KeyError, TypeError) as error:
                self._set_aside(int(path.parts[-3]), error)

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        print(f"checkpoint {step} in {self.directory} is damaged, set aside: {reason}", file=sys.stderr)
        if jax.process_index() == 0:
            aside = self.directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)

    def _check_room(self, step: int, state: PyTree) -> None:
        # Noticed beforehand it is one clear line; a disk that fills up while Orbax's threads write, a flood of them.
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.directory).free
        if free < needed:
            raise UserError(
                f"no space left for the checkpoint of step {step}: it needs {needed / 2**20:.1f} MiB, {self.directory} "
                f"has {free / 2**20:.1f}; those before it are whole: make room, then the same command goes on"
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Errors of the writing threads come as they are: OSError, or TensorStore's ValueError that ends with the cause.
        except Exception as error:
            reason = " ".join(str(error).split())
            reason = reason if len(reason) < 120 else f"… {reason[-120:]}"
            raise UserError(
                f"cannot write a checkpoint to {self.directory} ({reason}): those before it are whole; "
                "make room there, then the same command goes on from the last one"
            ) from error

    def wait(self) -> None:
        """Blocks until everything is on disk; an error of the writing thread is raised here."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written and releases the manager."""
        with self._writing():
            self.manager.close()


class StopRequest:
    """Truthy once the process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signal(*signals: int) -> Iterator[StopRequest]:
    """While inside, SIGTERM and SIGINT only set a flag, so that the loop can save and leave; a second one kills."""
    signals = signals or (signal.SIGTERM, signal.SIGINT)
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
