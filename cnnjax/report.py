"""What a run leaves behind: its folder, metrics as JSON lines and TensorBoard, the progress bar, the closing table."""

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from cnnjax import compiler
from cnnjax.types import UserError


def write_json(path: Path, content: Any) -> None:
    """Writes to a temporary name, then renames: a reader, or a crash, finds the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def as_dict(config: Any) -> dict[str, Any]:
    """A dataclass as what JSON gives back (paths become strings, tuples lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def check_ranges(
    config: Any, *, above_zero: Sequence[str] = (), from_zero: Sequence[str] = (), below_one: Sequence[str] = ()
) -> None:
    """Checks the numbers of a config; None passes, nan and inf never do.

    Args:
      above_zero: names of fields that must be > 0.
      from_zero: names of fields that must be ≥ 0.
      below_one: names of fields that must be ≥ 0 and < 1.

    Raises:
      UserError: naming the flags, what they must be and what they are.
    """
    ranges: tuple[tuple[str, Sequence[str], Callable[[float], bool]], ...] = (
        ("above 0", above_zero, lambda value: value > 0),
        ("0 or more", from_zero, lambda value: value >= 0),
        ("in 0 … 1, 1 excluded", below_one, lambda value: 0 <= value < 1),
    )
    bad = [
        f"--{name.replace('_', '-')} must be {text}, got {value}"
        for text, names, possible in ranges
        for name in names
        if (value := getattr(config, name)) is not None and not (math.isfinite(value) and possible(value))
    ]
    if bad:
        raise UserError("; ".join(bad))


def run_folder(given: Path | None, name: str) -> Path:
    """The folder that the user gave, else a new one in ``runs`` that is called ``name`` and the time.

    Raises:
      UserError: none is given in a run of several processes.
    """
    if given is not None:
        return given
    if jax.process_count() > 1:
        raise UserError("give a run of several processes one --run-dir that all of them see")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


class Run:
    """The folder of one run, open for writing. Only process 0 writes.

    Args:
      directory: made if missing.
      config: a frozen dataclass. If the folder has another one, it is refused.
      facts: what else must be the same to go on, e.g. the number of training images.
      free: names of config fields that may change when a run is resumed.

    Raises:
      UserError: the folder cannot be written, is in use, or belongs to another configuration.
    """

    def __init__(self, directory: Path, config: Any, facts: Mapping[str, Any], free: Sequence[str] = ()) -> None:
        self.dir = directory
        self.config = {**as_dict(config), "facts": dict(facts)}
        self.writes = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._metrics: Any = None
        self._tensorboard: Any = None
        if self.writes:
            with contextlib.ExitStack() as opening:
                opening.callback(self._stack.close)  # the lock is given up if the folder is refused
                self._open(free)
                opening.pop_all()

    def _open(self, free: Sequence[str]) -> None:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._check_config(free)
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.dir}: {error.strerror}") from error

    def _lock(self) -> None:
        file = self._stack.enter_context((self.dir / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.dir} is in use by another process: stop it or choose another --run-dir") from error

    def _check_config(self, free: Sequence[str]) -> None:
        path = self.dir / "config.json"
        if not path.exists():
            if (self.dir / "checkpoints").exists() or (self.dir / "metrics.jsonl").exists():
                raise UserError(f"{self.dir} holds a run without config.json: choose another --run-dir")
            write_json(path, self.config)
            return
        try:
            known = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it or choose another --run-dir") from error
        differs = [
            f"{name} was {known.get(name)!r} and is {self.config.get(name)!r}"
            for name in known.keys() | self.config.keys()
            if name not in free and known.get(name) != self.config.get(name)
        ]
        if differs:
            raise UserError(f"{self.dir} holds another run: {'; '.join(sorted(differs))}: choose another --run-dir")

    def start(self, step: int) -> None:
        """Opens the metrics for what comes after ``step``; what a killed run wrote beyond it is dropped."""
        if not self.writes:
            return
        path = self.dir / "metrics.jsonl"
        kept = [line for line, record in _read_metrics(path) if record["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(path)
        self._metrics = self._stack.enter_context(path.open("a"))
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.dir / "tensorboard"), purge_step=step + 1)
            self._stack.callback(self._tensorboard.close)

    def log(self, step: int, figures: Mapping[str, Any], **labels: Any) -> None:
        """Adds one line: the same for the same run, so nothing that depends on the clock belongs here."""
        if not self.writes:
            return
        self._metrics.write(json.dumps({"step": step, **labels, **figures}) + "\n")
        self.board(step, figures)

    def board(self, step: int, figures: Mapping[str, Any]) -> None:
        """To TensorBoard only, where its extra is installed: speeds and other figures of the clock."""
        if self._tensorboard is not None:
            for name, value in figures.items():
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Metrics reach the disk; called before a checkpoint, so that none is newer than its metrics."""
        if self.writes:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())

    def records(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.flush()
        return [record for _, record in _read_metrics(self.dir / "metrics.jsonl")]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: the final figures, flat."""
        if self.writes:
            write_json(self.dir / "summary.json", dict(summary))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files and gives up the lock."""
        self._stack.close()


def _read_metrics(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl and what they say; UserError for a damaged one, naming it."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], 1):  # a line that was being written when the process died has no end
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}, is damaged: delete the line, or choose another --run-dir"
            ) from error
        yield line.decode(), record


class Progress:
    """Progress bar over images, with images/s and the time left; silent on all processes but the first."""

    def __init__(self, total_steps: int, batch_size: int, start: int) -> None:
        self.batch_size = batch_size
        self.started, self.first = time.perf_counter(), start
        self.latest = start
        self.bar = tqdm(
            total=total_steps * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            disable=jax.process_index() != 0,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def step(self, step: int, **figures: float) -> None:
        """One step is done."""
        self.latest = step
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
        self.bar.update(self.batch_size)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if jax.process_index() == 0:
            tqdm.write(text, file=sys.stdout)

    @property
    def images_per_second(self) -> float:
        """Mean since the start of this process, evaluation included."""
        return (self.latest - self.first) * self.batch_size / (time.perf_counter() - self.started)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows (all with the keys of the first) as a table, on the first process."""
    if jax.process_index() or not rows:
        return
    result = Table(title=title)
    for name in rows[0]:
        result.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left")
    for row in rows:
        result.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(result)


def main(run: Callable[[], object]) -> None:
    """Runs a script's main function; what the user can put right becomes one line on stderr and exit status 2.

    Compiled programs are kept for the next run, see ``compiler.enable_cache``.
    """
    # What Orbax's threads log, with tracebacks, is raised in the main thread too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    compiler.enable_cache()
    try:
        run()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
