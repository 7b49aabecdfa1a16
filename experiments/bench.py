"""Speed of training and inference on the CPU, in images per second: cnnjax, plain lax, torch and Keras on JAX in turn.

    pip install -e '.[bench]'
    python experiments/bench.py                                         # about 25 min on 2 CPU cores, 12 GB
    python experiments/bench.py --nets fashion_cnn --modes train        # about 1 min
    python experiments/bench.py --nets fcn_mobilenet_v2 --peers lax torch               # segmentation, about 5 min
    python experiments/bench.py --nets resnet152 --modes train --peers keras   # also the time to compile, about 4 min
    python experiments/bench.py --smoke                                 # seconds, needs nothing beyond cnnjax

Each contender is a process of its own (``bench_worker.py``), started for each network and mode. In each round every
contender runs ``steps`` steps while the others wait, so that other load on the machine slows all of them alike. A step
is one batch: forward pass in training mode, cross-entropy, backward pass, SGD with momentum; or logits in evaluation
mode. All compute in float32.

``lax`` runs our networks with the operations of ``jax.lax`` as they are. torch is eager, channels last. Keras has
variants of its own (see ``parameters`` in summary.json). cnnjax folds BatchNorm into the convolutions for inference,
the others do not. Compare memory by peak MiB: temp MiB leaves out the allocations of XLA's YNNPACK calls, which are
most of the memory of lax in inference.

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

from cnnjax import cli, experiment, plot, report, settings
from cnnjax.types import UserError

_TORCH = ("torch", "torchvision", "timm")
NETS = bench_nets.ALL
# Contender beside cnnjax → the packages that it needs.
PEERS: dict[str, tuple[str, ...]] = {"lax": (), "torch": _TORCH, "torch_compile": _TORCH, "keras": ("keras",)}
MODES = ("train", "infer")


@dataclass(frozen=True)
class Config:
    """Networks, modes and contenders to time, and number of measurements."""

    nets: tuple[str, ...] = tuple(bench_nets.NETS)
    """Names of bench_nets.NETS and MORE, which also give their image and batch sizes."""
    modes: tuple[str, ...] = MODES
    """Names of modes: train, infer."""
    peers: tuple[str, ...] = ("lax", "torch", "keras")
    """Names of contenders beside cnnjax: lax, torch, torch_compile, keras."""
    rounds: settings.PositiveInt = 7
    """Turns of each contender."""
    steps: settings.PositiveInt = 2
    """Steps, of one batch each, in a turn."""
    tune_malloc: bool = False
    """Every contender's process keeps memory that it frees (cnnjax.compiler.tune_malloc, glibc only): steps are faster,
    but memory stays at its peak."""

    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


class Timing(NamedTuple):
    """Measurements of one contender."""

    seconds: list[float]
    """Time of each step."""
    about: dict[str, Any]
    """parameters, compile_seconds, temp_mib (None: not known), peak_mib."""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


Timings = Mapping[str, Timing]  # by contender


class Worker:
    """Process that runs ``bench_worker.py``; ``about`` is its first answer, described there."""

    def __init__(self, job: bench_worker.Job) -> None:
        self.job = job
        command = [sys.executable, bench_worker.__file__, json.dumps(asdict(job))]
        # Unbuffered, so that nothing remains to be written when the process has died.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.about = self._read()

    def ask(self, steps: int) -> dict[str, Any]:
        """Runs ``steps`` steps in the process and returns its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has died, which _read reports
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
        """Kills the process."""
        with self.process:
            self.process.kill()


def resolve(config: Config) -> Config:
    """Checks the settings, applies ``--smoke`` and chooses the run folder.

    Raises:
      UserError: an unknown or missing name, a package that is not installed, a number that is not above 0.
    """
    config = experiment.resolve(config, "bench")
    if config.output.smoke:
        config = replace(config, nets=("fashion_cnn",), peers=("lax",), rounds=2, steps=1)
    for flag, known, fewest in (("nets", NETS, 1), ("modes", MODES, 1), ("peers", PEERS, 0)):
        names = getattr(config, flag)
        unknown = [name for name in names if name not in known]
        if unknown or not fewest <= len(set(names)) == len(names):
            got = f"unknown {', '.join(unknown)}" if unknown else " ".join(names) or "nothing"
            raise UserError(f"--{flag} takes different names of {', '.join(known)}; got {got}")
    if "keras" in config.peers and (absent := [net for net in config.nets if net not in bench_nets.KERAS]):
        raise UserError(f"Keras has no {', '.join(absent)}: leave keras out of --peers")
    for peer in config.peers:
        missing = [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"--peers {peer} needs {', '.join(missing)}, not installed: pip install '.[bench]'")
    return config


def machine() -> dict[str, Any]:
    """Processor, the number of its cores that this process may use, and the versions of the packages."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu/model": found[1] if found else platform.processor(), "cpu/cores": cores}
    for package in ("jax", "jaxlib", "flax", *_TORCH, "keras"):
        if importlib.util.find_spec(package):
            facts[f"version/{package}"] = importlib.metadata.version(package)
    return facts


def measure(config: Config, mode: str, net: str, run: report.Run, line: Iterator[int]) -> dict[str, Timing]:
    """Times all contenders on one network, round by round; ``line`` gives the numbers of the lines in metrics.jsonl."""
    shape, batch = NETS[net].shape, NETS[net].batch
    timings: dict[str, Timing] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in ("cnnjax", *config.peers):
            print(f"{mode} {net}: starting {name}", flush=True)
            job = bench_worker.Job(net, shape, batch, mode, name, config.tune_malloc)
            workers[name] = stack.enter_context(Worker(job))
            timings[name] = Timing([], workers[name].about)
        for number in range(1, config.rounds + 1):
            for name, worker in workers.items():
                answer = worker.ask(config.steps)
                timings[name].seconds.extend(answer["seconds"])
                timings[name].about["peak_mib"] = answer["peak_mib"]
                labels = {"round": number, "mode": mode, "net": net, "contender": name, "steps": answer["seconds"]}
                run.log(next(line), {f"{mode}/{net}/{name}/seconds": float(np.median(answer["seconds"]))}, **labels)
            run.flush()
    return timings


def figures(mode: str, net: str, timings: Timings) -> dict[str, float]:
    """Figures of one network for summary.json."""
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


def rows(net: str, timings: Timings, reference: str) -> list[dict[str, str]]:
    """Rows of the table for one network, which fits 80 columns; times are relative to those of ``reference``."""
    batch, result = NETS[net].batch, []
    for name, timing in timings.items():
        low, middle, high = (short(batch / np.percentile(timing.seconds, part)) for part in (75, 50, 25))
        temporary = timing.about["temp_mib"]
        result.append(
            {
                "contender": name,
                "images/s": middle,
                "quartiles": f"{low}–{high}",
                f"time /\n{reference}'s": f"{timing.median / timings[reference].median:.2f}",
                "compile\ns": f"{timing.about['compile_seconds']:.1f}",
                "temp\nMiB": "" if temporary is None else f"{temporary:.0f}",
                "peak\nMiB": f"{timing.about['peak_mib']:.0f}",
            }
        )
    return result


def short(value: float) -> str:
    """Number with four digits, or with all digits of its integer part."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def chart(results: Mapping[tuple[str, str], Timings], reference: str) -> plot.Figure:
    """Bars of images/s as multiples of those of ``reference``."""
    groups = {
        f"{mode}\n{net}": {name: timings[reference].median / timing.median for name, timing in timings.items()}
        for (mode, net), timings in results.items()
    }
    return plot.bars(groups, f"images/s, {reference} = 1")


def main(config: Config) -> dict[str, Any]:
    """Times everything, prints a table for each network and mode, writes the files; returns the summary."""
    config = resolve(config)
    contenders, facts = ("cnnjax", *config.peers), machine()
    # Times are compared with those of torch if it runs, else with those of lax.
    reference = next(name for name in ("torch", "lax", *contenders) if name in contenders)
    summary = dict(facts)
    results: dict[tuple[str, str], Timings] = {}
    print(f"{facts['cpu/model']}, {facts['cpu/cores']} cores, float32")
    with experiment.opened(config, facts) as run:
        run.start(0)
        line = itertools.count(1)
        for net, mode in itertools.product(config.nets, config.modes):
            timings = results[mode, net] = measure(config, mode, net, run, line)
            summary |= figures(mode, net, timings)
            report.table(f"{mode} {net}, batches of {NETS[net].batch}", rows(net, timings, reference))
        run.finish(summary)
        experiment.draw(run, {"images_per_second.png": lambda: chart(results, reference)})
    print(f"results in {run.dir}")
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
