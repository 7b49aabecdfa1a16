"""Kills a short run at random moments, resumes it, and compares it with an uninterrupted run, bit for bit.

    python tests/kills.py --kills 50
    python tests/kills.py --kills 30 --script flowers --dataset FOLDER      # two phases; one sub-folder per class

Every attempt is killed with SIGKILL after a random time unless it ends first; a run that ended is compared (all
parameters, optimizer state and metrics.jsonl) and the next one starts. Takes about 10 s a kill on 2 CPU cores.
"""

import filecmp
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

ROOT = Path(__file__).parent.parent
SHORT = ("--epochs", "2", "--batch-size", "64", "--log-every", "1", "--checkpoint-every", "3", "--ema-decay", "0.9")
SMOKE = ("--smoke", "--random-crop", "0.5", "--checkpoint-every", "1", "--ema-decay", "0.9")


def start(run_dir: Path, *flags: str, script: str = "classify", **environment: str) -> subprocess.Popen:
    """Starts a script of experiments/; its output goes to a .log file beside the run folder."""
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), "--run-dir", str(run_dir), *flags]
    with run_dir.with_name(f"{run_dir.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})


def run(run_dir: Path, *flags: str, script: str = "classify", **environment: str) -> None:
    """Runs a script of experiments/ to its end; raises RuntimeError, with the log, if it fails."""
    process = start(run_dir, *flags, script=script, **environment)
    if process.wait(timeout=600):
        raise RuntimeError(run_dir.with_name(f"{run_dir.name}.log").read_text()[-3000:])


def final_state(run_dir: Path) -> dict:
    """Arrays of the newest checkpoint, on the host."""
    newest = max((run_dir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # also where another device wrote it
    args = ocp.args.StandardRestore(fallback_sharding=here)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(newest.resolve() / "state", args=args))


def differences(run_dir: Path, unbroken: Path) -> list[str]:
    """Differences between two finished runs: arrays of the final state, lines of metrics, the summary."""
    (ours, _), (theirs, _) = (
        jax.tree_util.tree_flatten_with_path(final_state(directory)) for directory in (run_dir, unbroken)
    )
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        return ["the checkpoints have other arrays"]
    found = [
        jax.tree_util.keystr(path)
        for (path, a), (_, b) in zip(ours, theirs, strict=True)
        if a.tobytes() != b.tobytes() or a.dtype != b.dtype
    ]
    names = ("metrics.jsonl", "summary.json")
    return found + [name for name in names if not filecmp.cmp(run_dir / name, unbroken / name, shallow=False)]


@dataclass(frozen=True)
class Config:
    """Number of kills, and the script to kill."""

    kills: int = 50
    """Total number of kills."""
    seed: int = 0
    """Seed of the moments of the kills."""
    script: Literal["classify", "flowers"] = "classify"
    """Script of experiments/: classify on digits, or flowers with random weights."""
    dataset: str = "tf_flowers"
    """Data set of flowers."""


def main(config: Config) -> None:
    """Kills, resumes, compares; exit status 1 at the first difference."""
    rng = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")
        os.environ.setdefault("CNNJAX_CACHE", f"{folder}/cache")
        flags = SHORT if config.script == "classify" else (*SMOKE, "--dataset", config.dataset)
        unbroken = Path(folder, "unbroken")
        run(unbroken, *flags, script=config.script)
        started = time.perf_counter()
        run(Path(folder, "warm"), *flags, script=config.script)
        duration = time.perf_counter() - started
        print(f"an unbroken run takes {duration:.1f} s", flush=True)
        kills = runs = 0
        while kills < config.kills:
            directory = Path(folder, f"run{runs}")
            kills += kill_until_done(directory, flags, config.script, duration, config.kills - kills, rng)
            if found := differences(directory, unbroken):
                sys.exit(f"after {kills} kills run {runs} differs: {found}")
            runs += 1
            print(f"{kills} kills, {runs} resumed runs, all identical to the unbroken one", flush=True)


def kill_until_done(
    directory: Path, flags: Sequence[str], script: str, duration: float, most: int, rng: random.Random
) -> int:
    """Starts a run repeatedly, killing it at most ``most`` times, until it ends; returns the number of kills."""
    for kills in range(most + 1):
        process = start(directory, *flags, script=script)
        try:
            status = process.wait(timeout=rng.uniform(0, duration) if kills < most else 600)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            continue
        if status:
            sys.exit(directory.with_name(f"{directory.name}.log").read_text()[-3000:])
        return kills
    return most


if __name__ == "__main__":
    main(tyro.cli(Config))
