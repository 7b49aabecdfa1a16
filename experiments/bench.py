"""Images per second that networks train and infer at on the CPU: cnnjax, plain lax, torch and Keras on JAX in turn.

    pip install -e '.[bench]'
    python experiments/bench.py                                         # about 25 min on 2 CPU cores, 12 GB
    python experiments/bench.py --nets fashion_cnn --modes train        # about 1 min
    python experiments/bench.py --nets resnet152 --modes train --peers keras   # also who compiles faster, about 4 min
    python experiments/bench.py --smoke                                 # seconds, needs nothing beyond cnnjax

Each contender is a process of its own (``bench_worker.py``), started for each network and mode. In a round each runs
``steps`` steps while the others wait, so that what else the machine does meets all alike. A step is one batch: forward
pass in training mode, cross-entropy, backward pass, SGD with momentum; or logits in evaluation mode. All in float32.

``lax`` is our networks with every operation lax' own. torch is eager, channels last. Keras has variants of its own (see
``parameters`` in summary.json). cnnjax folds BatchNorm into the convolutions for inference, the others do not.
Compare memory by peak MiB: temp MiB leaves out what XLA's YNNPACK calls allocate, which is most of lax' inference.

To expect on 2 cores with AVX-512: training takes cnnjax 1.0 to 1.3 times torch's time, lax 1.5 to 8 times.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import bench_nets
import bench_worker
import numpy as np
import tyro

from cnnjax import plot, report
from cnnjax.types import UserError

_TORCH = ("torch", "torchvision", "timm")
NETS = {**bench_nets.NETS, **bench_nets.MORE}
# Contender → the packages that it needs.
PEERS: dict[str, tuple[str, ...]] = {"lax": (), "torch": _TORCH, "torch_compile": _TORCH, "keras": ("keras",)}
MODES = ("train", "infer")


@dataclass(frozen=True)
class Config:
    """What to time."""

    nets: tuple[str, ...] = tuple(bench_nets.NETS)
    """Names of bench_nets.NETS and MORE, which also give their image and batch sizes."""
    modes: tuple[str, ...] = MODES
    """train, infer."""
    peers: tuple[str, ...] = ("lax", "torch", "keras")
    """Beside cnnjax: lax, torch, torch_compile, keras."""
    rounds: int = 7
    """Turns of each contender."""
    steps: int = 2
    """Steps, of one batch each, in a turn."""
    tune_malloc: bool = False
    """Every contender's process keeps memory that it frees (cnnjax.compiler.tune_malloc, glibc only): faster steps, but
    the process holds its peak."""
    run_dir: Path = Path("runs/bench")
    """Where figures and the picture go. Started again, everything is timed anew."""
    smoke: bool = False
    """Only fashion_cnn, only lax beside cnnjax, 2 rounds of 1 step."""


class Timing(NamedTuple):
    """What one contender did."""

    seconds: list[float]
    """Of each step."""
    about: dict[str, Any]
    """Parameters, compile_seconds, temp_mib (None: not known), peak_mib."""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


Timings = Mapping[str, Timing]  # by contender


class Worker:
    """A process that runs ``bench_worker.py``; ``about`` is what it said of itself once it was warm."""

    def __init__(self, job: bench_worker.Job) -> None:
        self.job = job
        command = [sys.executable, bench_worker.__file__, json.dumps(asdict(job))]
        # Unbuffered: nothing is left to write when the process has died.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.about = self._read()

    def ask(self, steps: int) -> dict[str, Any]:
        """Lets it run so many steps and waits for them."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has died, and _read says so
            self.process.stdin.write(json.dumps({"steps": steps}).encode() + b"\n")
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            job, status = self.job, self.process.wait()
            reason = "killed, as when memory runs out" if status == -9 else "its message is above"
            raise UserError(f"{job.contender} on {job.net} ({job.mode}) ended with status {status}: {reason}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, whatever it is doing."""
        with self.process:
            self.process.kill()


def resolve(config: Config) -> Config:
    """Checks the choices and makes ``--smoke`` small.

    Raises:
      UserError: an unknown or missing name, a package that is not installed, a number that is not above 0.
    """
    report.check_ranges(config, above_zero=("rounds", "steps"))
    if config.smoke:
        config = replace(config, nets=("fashion_cnn",), peers=("lax",), rounds=2, steps=1)
    for flag, known, least in (("nets", NETS, 1), ("modes", MODES, 1), ("peers", PEERS, 0)):
        names = getattr(config, flag)
        unknown = [name for name in names if name not in known]
        if unknown or not least <= len(set(names)) == len(names):
            got = f"unknown {', '.join(unknown)}" if unknown else " ".join(names) or "nothing"
            raise UserError(f"--{flag} takes different names of {', '.join(known)}; got {got}")
    for peer in config.peers:
        missing = [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"--peers {peer} needs {', '.join(missing)}, not installed: pip install '.[bench]'")
    return config


def machine() -> dict[str, Any]:
    """The processor, its cores that this process may use, and the versions of what is installed."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu/model": found[1] if found else platform.processor(), "cpu/cores": cores}
    for package in ("jax", "jaxlib", "flax", *_TORCH, "keras"):
        if importlib.util.find_spec(package):
            facts[f"version/{package}"] = importlib.metadata.version(package)
    return facts


def turns(workers: Mapping[str, Worker], rounds: int, steps: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Each worker in turn, round by round: the number of the round from 1, the contender, its answer."""
    for number in range(1, rounds + 1):
        for name, worker in workers.items():
            yield number, name, worker.ask(steps)


def measure(config: Config, mode: str, net: str, run: report.Run, first: int) -> dict[str, Timing]:
    """Times all contenders on one network; ``first`` numbers the first of its lines in metrics.jsonl."""
    shape, batch, _ = NETS[net]
    timings: dict[str, Timing] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in ("cnnjax", *config.peers):
            print(f"{mode} {net}: starting {name}", flush=True)
            job = bench_worker.Job(net, shape, batch, mode, name, config.tune_malloc)
            workers[name] = stack.enter_context(Worker(job))
            timings[name] = Timing([], workers[name].about)
        for line, (number, name, answer) in enumerate(turns(workers, config.rounds, config.steps), first):
            timings[name].seconds.extend(answer["seconds"])
            timings[name].about["peak_mib"] = answer["peak_mib"]
            labels = {"round": number, "mode": mode, "net": net, "contender": name, "steps": answer["seconds"]}
            run.log(line, {f"{mode}/{net}/{name}/seconds": float(np.median(answer["seconds"]))}, **labels)
    return timings


def figures(mode: str, net: str, timings: Timings) -> dict[str, float]:
    """The lines of summary.json for one network."""
    batch = NETS[net].batch
    summary: dict[str, float] = {}
    for name, timing in timings.items():
        low, high = np.percentile(timing.seconds, (25, 75))
        values = {"images_per_second": batch / timing.median, "seconds": timing.median}
        values |= {"seconds_lower_quartile": float(low), "seconds_upper_quartile": float(high), **timing.about}
        summary |= {f"{mode}/{net}/{name}/{key}": value for key, value in values.items() if value is not None}
        if name != "cnnjax":
            summary[f"{mode}/{net}/time_over_{name}"] = timings["cnnjax"].median / timing.median
    return summary


def rows(net: str, timings: Timings, against: str) -> list[dict[str, str]]:
    """The lines of the table for one network, with times over those of ``against``; it fits 80 columns."""
    batch, result = NETS[net].batch, []
    for name, timing in timings.items():
        low, middle, high = (short(batch / np.percentile(timing.seconds, part)) for part in (75, 50, 25))
        temporary = timing.about["temp_mib"]
        result.append(
            {
                "contender": name,
                "images/s": middle,
                "quartiles": f"{low}–{high}",
                f"time /\n{against}'s": f"{timing.median / timings[against].median:.2f}",
                "compile\ns": f"{timing.about['compile_seconds']:.1f}",
                "temp\nMiB": "" if temporary is None else f"{temporary:.0f}",
                "peak\nMiB": f"{timing.about['peak_mib']:.0f}",
            }
        )
    return result


def short(value: float) -> str:
    """Four digits, or as many as the whole part has."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def picture(results: Mapping[tuple[str, str], Timings], against: str, path: Path) -> None:
    """Images/s as multiples of those of ``against``."""
    groups = {
        f"{mode}\n{net}": {name: timings[against].median / timing.median for name, timing in timings.items()}
        for (mode, net), timings in results.items()
    }
    plot.save(plot.bars(groups, f"images/s, {against} = 1"), path)


def main(config: Config) -> dict[str, Any]:
    """Times everything, prints a table for each network and mode, writes the report; returns the summary."""
    config = resolve(config)
    contenders, facts = ("cnnjax", *config.peers), machine()
    # Times are compared with torch's where there is one, else with lax'.
    against = next(name for name in ("torch", "lax", *contenders) if name in contenders)
    summary = dict(facts)
    results: dict[tuple[str, str], Timings] = {}
    print(f"{facts['cpu/model']}, {facts['cpu/cores']} cores, float32")
    with report.Run(config.run_dir, config, facts) as run:
        run.start(0)
        for net, mode in itertools.product(config.nets, config.modes):
            first = 1 + len(results) * config.rounds * len(contenders)
            timings = results[mode, net] = measure(config, mode, net, run, first)
            summary |= figures(mode, net, timings)
            report.table(f"{mode} {net}, batches of {NETS[net].batch}", rows(net, timings, against))
        picture(results, against, run.dir / "images_per_second.png")
        run.finish(summary)
    return summary


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
