"""Records of a run: its folder, metrics as JSON lines and TensorBoard, the progress bar, tables."""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from cnnjax import atomic, sharding, text
from cnnjax.types import Batch, UserError


class Run:
    """Folder of one run, open for writing. Only process 0 writes.

    Args:
      directory: made if missing.
      config: settings as JSON gives them back. A folder with other settings is refused.
      facts: other values that must be the same to resume, e.g. the number of training images.
      may_differ: names of settings that may change when a run is resumed.
      located: names of settings that may change if the fact ``data``, the fingerprint of the data, is the same.
      defaults: values of settings that a folder of an older version does not name.

    Raises:
      UserError: the folder cannot be written, is in use, or belongs to another configuration; or not all processes see
        it.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        may_differ: Sequence[str] = (),
        located: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.dir = directory
        self.config = {**config, "facts": dict(facts)}
        self.writes = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._metrics: Any = None
        self._tensorboard: Any = None
        with contextlib.ExitStack() as opening:
            opening.callback(self._stack.close)  # the lock is released if the folder is refused
            with sharding.all_or_none(f"open {directory}"):
                if self.writes:
                    self._open({**(defaults or {}), "facts": {}}, may_differ, located)
            with sharding.all_or_none(f"see {directory}"):
                if not (directory / "config.json").exists():
                    raise UserError(f"process {jax.process_index()} does not see {directory}: it must be shared by all")
            opening.pop_all()

    def _open(self, defaults: Mapping[str, Any], may_differ: Sequence[str], located: Sequence[str]) -> None:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock()
            known = self._known()
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.dir}: {error.strerror}") from error
        was, now = ({**each, "facts.data": None, **_flat_facts(each)} for each in ({**defaults, **known}, self.config))
        if was["facts.data"] is None:  # the folder is of an older version
            now["facts.data"] = None
        elif was["facts.data"] == now["facts.data"]:
            may_differ = [*may_differ, *located]
        differs = sorted(
            "its images or labels were others"
            if name == "facts.data"
            else f"{name.removeprefix('facts.')} was {was.get(name)!r} and is {now.get(name)!r}"
            for name in was.keys() | now.keys()
            if name not in may_differ and was.get(name) != now.get(name)
        )
        if differs:
            go_on = f", or go on from it in a new one by --continue-from {self.dir}" if self._has_steps() else ""
            raise UserError(f"{self.dir} holds another run: {'; '.join(differs)}: choose another --run-dir{go_on}")

    def _lock(self) -> None:
        file = self._stack.enter_context((self.dir / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.dir} is in use by another process: stop it or choose another --run-dir") from error

    def _known(self) -> dict[str, Any]:
        """Content of config.json, which is written if there is none."""
        path = self.dir / "config.json"
        if path.exists():
            return read_config(self.dir)
        if self._has_steps() or (self.dir / "metrics.jsonl").exists():
            raise UserError(f"{self.dir} holds a run without config.json: choose another --run-dir")
        atomic.write_json(path, self.config)
        return self.config

    def _has_steps(self) -> bool:
        return (self.dir / "checkpoints").exists()

    def take_over(self, origin: Path) -> None:
        """Copies checkpoints and metrics of another run, unless this one has checkpoints: it then goes on from there.

        Raises:
          UserError: that run has no checkpoint, is running, or cannot be copied.
        """
        with sharding.all_or_none(f"copy {origin}"):
            if not self.writes or self._has_steps():
                return
            if not list((origin / "checkpoints").glob("[0-9]*")):
                raise UserError(f"{origin} has no checkpoint to go on from")
            try:
                with (origin / ".lock").open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    shutil.rmtree(copy := self.dir / "checkpoints.part", ignore_errors=True)
                    half_written = shutil.ignore_patterns("damaged-*", "*.orbax*")
                    shutil.copytree(origin / "checkpoints", copy, ignore=half_written)
                    atomic.write_bytes(self.dir / "metrics.jsonl", (origin / "metrics.jsonl").read_bytes())
                    copy.rename(self.dir / "checkpoints")
                    print(f"going on from {origin}: its checkpoints and metrics are copied")
            except BlockingIOError as error:
                raise UserError(f"{origin} is in use by another process: stop it, or wait for its end") from error
            except (OSError, shutil.Error) as error:
                raise UserError(f"cannot copy the checkpoints of {origin} to {self.dir}: {error}") from error

    def start(self, step: int) -> None:
        """Opens the metrics for the steps after ``step``; lines that a killed run wrote beyond it are dropped."""
        if not self.writes:
            return
        path = self.dir / "metrics.jsonl"
        kept = [line for line, record in _read_metrics(path) if record["step"] <= step]
        atomic.write_text(path, "".join(f"{line}\n" for line in kept))
        self._metrics = self._stack.enter_context(path.open("a"))
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.dir / "tensorboard"), purge_step=step + 1)
            self._stack.callback(self._tensorboard.close)

    def log(self, step: int, figures: Mapping[str, Any], **labels: Any) -> None:
        """Adds one line, equal each time the run is repeated: no figures that depend on the clock belong here."""
        if not self.writes:
            return
        self._metrics.write(json.dumps({"step": step, **labels, **figures}) + "\n")
        self.board(step, figures)

    def board(self, step: int, figures: Mapping[str, Any]) -> None:
        """Adds figures that depend on the clock, such as speeds, to TensorBoard only, where its extra is installed."""
        if self._tensorboard is not None:
            for name, value in figures.items():
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Forces metrics to the disk; called before a checkpoint, so that none is newer than its metrics."""
        if self.writes:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.flush()
        return [record for _, record in _read_metrics(self.dir / "metrics.jsonl")]

    def scores(self, step: int) -> dict[str, float]:
        """Validation figures that were reported after ``step``."""
        line = next(line for line in self.records() if line["step"] == step and "phase" in line)
        return {name: value for name, value in line.items() if name.startswith("valid/")}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: the final figures, flat."""
        if self.writes:
            atomic.write_json(self.dir / "summary.json", dict(summary))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files and releases the lock."""
        self._stack.close()


def read_config(folder: Path) -> dict[str, Any]:
    """Settings and facts of the run in a folder.

    Raises:
      UserError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not the folder of a run: it has no config.json") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or choose another --run-dir") from error


def _flat_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"facts": None, **{f"facts.{name}": value for name, value in config["facts"].items()}}


def _read_metrics(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of metrics.jsonl, as text and parsed; UserError names a damaged one."""
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
        """Moves on to ``step``."""
        self.latest = step
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
        self.bar.update(self.batch_size)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if jax.process_index() == 0:
            tqdm.write(text, file=sys.stdout)

    @property
    def images_per_second(self) -> float:
        """Mean rate since the start of this process, evaluation included."""
        return (self.latest - self.first) * self.batch_size / (time.perf_counter() - self.started)

    def close(self) -> None:
        """Ends the bar, which stays on the screen."""
        self.bar.close()


def progress(batches: Iterable[Batch], steps: int, batch_size: int) -> Iterator[Batch]:
    """Batches, with a bar that counts them; ``steps`` is their number."""
    bar = Progress(steps, batch_size, 0)
    for number, batch in enumerate(batches, 1):
        yield batch
        bar.step(number)
    bar.close()


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows (all with the keys of the first) as a table, on the first process; text stands there literally."""
    if jax.process_index() or not rows:
        return
    result = Table(title=_literal(title))
    for name in rows[0]:
        result.add_column(_literal(name), justify="right" if isinstance(rows[0][name], int | float) else "left")
    for row in rows:
        result.add_row(*map(_literal, row.values()))
    Console().print(result)


def say(line: str) -> None:
    """Prints a line on the first process; text stands there literally."""
    if not jax.process_index():
        print(text.one_line(line))


def _literal(value: Any) -> Text:
    # A plain string would be read as rich's markup.
    return Text(f"{value:.4f}" if isinstance(value, float) else text.printable(str(value)))
