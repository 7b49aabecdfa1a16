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

from cnnjax import sharding
from cnnjax.types import PyTree, UserError


def checksums(tree: PyTree) -> dict[str, int]:
    """CRC-32 of the bytes of every leaf, by path, to tell a damaged checkpoint from a good one.

    It does not depend on the sharding of an array: on one device, replicated, split over several devices or processes.
    All processes must call this together.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    sums = {path: _crc32(_local(leaf)) for path, leaf in leaves.items()}
    distributed = [path for path, leaf in leaves.items() if _is_distributed(leaf)]
    if distributed:
        parts = multihost_utils.process_allgather(np.array([sums[path] for path in distributed], np.uint32))
        sums |= {path: _combined(part, leaves[path].nbytes) for path, part in zip(distributed, parts.T, strict=True)}
    return sums


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _is_distributed(leaf: Any) -> bool:
    """True for an array that no process holds whole."""
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def _local(leaf: Any) -> np.ndarray:
    """Array on the host: whole, or, if no process holds it whole, this process's part of it amid zeros."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    whole = np.zeros(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:  # of several devices that hold a part only one counts
            whole[shard.index] = shard.data
    return whole


def _combined(parts: np.ndarray, size: int) -> int:
    """CRC-32 of the exclusive or (⊕) of several arrays of ``size`` bytes, from the CRC-32 of each.

    CRC-32 is affine: crc(a ⊕ b) = crc(a) ⊕ crc(b) ⊕ crc(0), for a, b and zeros of equal length.
    """
    zero = _crc32(np.zeros(size, np.uint8)) if len(parts) % 2 == 0 else 0
    return int(np.bitwise_xor.reduce(parts)) ^ zero


def _together(name: str) -> None:
    """Waits until all processes have come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _rank(scores: Mapping[str, Any]) -> Any:
    """Sorting key by which the first of equal scores is the best; Orbax, which only sorts, would take the last."""
    return scores["score"], -scores.get("step", 0)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of a state's arrays, or of Orbax's description of one, by path."""

    def name(part: Any) -> str:
        return str(next(getattr(part, kind) for kind in ("name", "key", "idx") if hasattr(part, kind)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one run: the last ``keep_last``, and the ``keep_best`` with the highest scores.

    Among equal scores the first is the best.

    Args:
      directory: made if it is missing.
      config: the run's settings, stored in every checkpoint, so that one can be read without its run folder.
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
          UserError: this checkpoint, or the one before it, cannot be written. ``wait`` and ``close`` raise it too.
        """
        meta = {"config": self.config, "crc32": checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self.wait()  # Orbax waits here too; what is being written is not yet missing from the free space
        self._check_room(step, state)
        with self._writing():
            self.manager.save(step, args=args, metrics=None if score is None else {"score": score, "step": step})

    def restore(self, target: Callable[[int], PyTree]) -> tuple[int, PyTree] | None:
        """Step and state of the newest checkpoint whose checksums are right; None if there is no checkpoint.

        A damaged one is reported on stderr, set aside as ``damaged-<step>``, and the one before it is tried.

        Args:
          target: step → the state's ``jax.ShapeDtypeStruct``, with its shardings.

        Raises:
          UserError: there are checkpoints, and all of them are damaged; or one is of another network or optimizer.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, self._read(step, target(step))
            # Orbax and TensorStore raise any kind of exception, plain Exception too, for a damaged file.
            except Exception as error:
                self._check_shapes(step, target(step))
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
        """Step of the checkpoint with the highest score; None if none has a score."""
        return self.manager.best_step()

    def best(self, target: Callable[[int], PyTree]) -> tuple[int, PyTree]:
        """Step and state of the checkpoint with the highest score.

        Args:
          target: as in ``restore``.

        Raises:
          UserError: no checkpoint has a score, or the best one is damaged.
        """
        step = self.best_step
        try:
            if step is None:
                raise UserError("none has a score")
            return step, self._read(step, target(step))
        except Exception as error:  # as in restore
            raise UserError(f"the best checkpoint in {self.directory} cannot be read: {error}") from error

    def _read(self, step: int, target: PyTree) -> PyTree:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        # Each process reads alone: the manager's restore would wait for processes that failed to read their part.
        this, part = jax.process_index(), f"read their part of checkpoint {step}"
        alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
        with sharding.all_or_none(part), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            restored = checkpointer.restore(self.directory / str(step), args=args)
        found = checksums(restored["state"])
        with sharding.all_or_none(part):
            expected = restored["meta"]["crc32"]
            wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
            if wrong:
                raise UserError(f"the checksums of {wrong[:5]} differ from those written")
        return restored["state"]

    def _check_shapes(self, step: int, target: PyTree) -> None:
        try:
            written = _shapes(ocp.PyTreeCheckpointHandler().metadata(self.directory / str(step) / "state").tree)
        except Exception:  # it is damaged, as the caller knows
            return
        expected = _shapes(target)
        if wrong := sorted(name for name in written | expected if written.get(name) != expected.get(name)):
            name = wrong[0]
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} is of another network or optimizer: {len(wrong)} "
                f"of its {len(written)} arrays differ, such as {name}, {written.get(name, 'absent')} there and "
                f"{expected.get(name, 'absent')} here: give the settings it was made with, or start a new run with its "
                "network alone (--continue-from RUN --continue-with weights)"
            )

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
        # Checked beforehand, it is one clear line; a disk that fills up while Orbax's threads write makes many.
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
        # Errors of the writing threads arrive unchanged: OSError, or TensorStore's ValueError that ends with the cause.
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
        """Finishes pending writes and releases the manager."""
        with self._writing():
            self.manager.close()


class StopRequest:
    """Flag that becomes true when the process is asked to stop.

    Attributes:
      signal: number of the signal that asked.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signal(*signals: int) -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a flag for the block, so that its loop can save and leave; a second one kills."""
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
