"""Runs that are killed, stopped, damaged or misdirected, through the command line: nothing is lost."""

import json
import os
import random
import shutil
import signal
import socket
import time

import jax
import kills
import pytest


@pytest.fixture(scope="module", autouse=True)
def short_starts():
    """Keeps every compiled program for the next process, also small ones, of which a start has a hundred.

    So programs are compiled once and run often, as users' are: with all optimizations, on one device.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder of a short run without interruption."""
    folder = tmp_path_factory.mktemp("resume") / "unbroken"
    kills.run(folder, *kills.SHORT)
    return folder


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(path, pattern):
    """Waits until a file matching ``pattern`` lies in ``path``."""
    for _ in range(3600):
        if list(path.glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path}")


def test_unbroken_run_has_each_step_once(unbroken):
    total = 2 * (1293 // 64)
    assert steps(unbroken) == sorted([*range(1, total + 1), total // 2, total])


def test_killed_runs_end_as_the_unbroken_one(unbroken, tmp_path):
    """Runs get SIGKILL as soon as there is a checkpoint, or at a random moment after it."""
    folder, rng = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        process = kills.start(folder, *kills.SHORT)
        wait_for(folder, "checkpoints/[0-9]*")
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    kills.run(folder, *kills.SHORT)
    assert kills.differences(folder, unbroken) == []


@pytest.mark.exhaustive
def test_sigterm_saves_exits_0_and_goes_on(unbroken, tmp_path):
    folder = tmp_path / "stopped"
    process = kills.start(folder, *kills.SHORT, "--checkpoint-every", "0")
    wait_for(tmp_path, "stopped/metrics.jsonl")
    process.terminate()
    assert process.wait(timeout=120) == 0
    log = (tmp_path / "stopped.log").read_text()
    assert "saved: the same command goes on" in log
    kills.run(folder, *kills.SHORT)
    assert kills.differences(folder, unbroken) == []


@pytest.mark.exhaustive
def test_damaged_newest_checkpoint_is_reported_and_the_one_before_used(unbroken, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(unbroken, folder)
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for path in (newest / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    (folder / "summary.json").unlink()
    kills.run(folder, *kills.SHORT)
    log = (tmp_path / "damaged.log").read_text()
    assert f"checkpoint {newest.name} in" in log
    assert "is damaged" in log
    assert kills.differences(folder, unbroken) == []


@pytest.mark.exhaustive
def test_finished_run_is_reported_again_and_not_changed(unbroken, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(unbroken, folder)
    kills.run(folder, *kills.SHORT)
    assert kills.differences(folder, unbroken) == []


def test_other_configuration_is_refused_naming_what_differs(unbroken, tmp_path):
    before = sorted(unbroken.rglob("*"))
    with pytest.raises(RuntimeError, match="seed was 0 and is 1"):
        kills.run(unbroken, *kills.SHORT, "--seed", "1")
    assert sorted(unbroken.rglob("*")) == before


@pytest.mark.exhaustive
def test_run_in_use_is_refused(tmp_path):
    folder = tmp_path / "used"
    first = kills.start(folder, *kills.SHORT)
    wait_for(tmp_path, "used/config.json")
    with pytest.raises(RuntimeError, match="in use by another process"):
        kills.run(folder, *kills.SHORT)
    first.kill()
    first.wait()


def start_two(folder, port, *flags, second=()):
    """Starts two processes of four devices each, over loopback; ``second`` are more flags for the second."""
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    each = (flags, (*flags, *second))
    return [kills.start(folder, *each[index], **environment, JAX_PROCESS_ID=str(index)) for index in range(2)]


@pytest.mark.exhaustive
def test_two_processes_are_one(tmp_path, unused_tcp_port):
    """They equal one process of eight devices, with SGD: Adam would amplify rounding errors of small gradients."""
    flags = ("--smoke", "--optimizer", "sgd", "--learning-rate", "0.05")
    kills.run(tmp_path / "one", *flags)
    processes = start_two(tmp_path / "two", unused_tcp_port, *flags)
    assert [process.wait(timeout=300) for process in processes] == [0, 0], (tmp_path / "two.log").read_text()[-3000:]
    one, two = (kills.final_state(tmp_path / name) for name in ("one", "two"))
    largest = max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(initial=0), one, two)))
    assert largest <= 1e-5
    assert steps(tmp_path / "one") == steps(tmp_path / "two")


@pytest.mark.exhaustive
def test_processes_with_other_settings_are_refused_at_start(tmp_path, unused_tcp_port):
    processes = start_two(tmp_path / "two", unused_tcp_port, "--smoke", second=("--seed", "1", "--threads", "2"))
    assert [process.wait(timeout=300) for process in processes] == [2, 2]
    log = (tmp_path / "two.log").read_text()
    assert all(f"different settings: in process {index} seed is {index}: start" in log for index in range(2))
    assert not (tmp_path / "two").exists()


@pytest.mark.exhaustive
def test_two_processes_stop_at_the_same_step(tmp_path, unused_tcp_port):
    """Only one of them gets SIGTERM."""
    folder = tmp_path / "two"
    processes = start_two(folder, unused_tcp_port, *kills.SHORT, "--epochs", "50")
    wait_for(folder, "checkpoints/[0-9]*")
    processes[1].terminate()
    assert [process.wait(timeout=300) for process in processes] == [0, 0], (tmp_path / "two.log").read_text()[-3000:]
    assert "saved: the same command goes on" in (tmp_path / "two.log").read_text()
    newest = max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))
    assert steps(folder)[-1] == newest


@pytest.fixture
def unused_tcp_port():
    """A port of the loopback interface that is free now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_half_described_multi_process_run_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="not set: JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        kills.run(tmp_path / "half", JAX_COORDINATOR_ADDRESS="127.0.0.1:1")
    assert os.listdir(tmp_path) == ["half.log"]
