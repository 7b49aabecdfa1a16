"""Checkpoints: exact, best and last kept, and every kind of damage found out."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from cnnjax import checkpoint, sharding, train
from cnnjax.types import UserError

MESH = sharding.make_mesh(jax.devices()[:1])


def state(value=0.0):
    initial = train.init_state(tiny.plan(ema_decay=0.9), tiny.variables())
    return sharding.replicate(jax.tree.map(lambda x: x + np.asarray(value, x.dtype), initial), MESH)


def target(_):
    return train.abstract_state(tiny.plan(ema_decay=0.9), tiny.variables(), MESH, 0)


def write(folder, scores):
    checkpoints = checkpoint.Checkpoints(folder, {"seed": 0})
    for step, score in scores.items():
        checkpoints.save(step, state(step), score)
    checkpoints.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with checkpoints 1, 2, 3."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    write(folder, {1: 0.9, 2: 0.1, 3: 0.2})
    return folder


def test_round_trip_is_bit_exact(three):
    step, restored = checkpoint.Checkpoints(three, {}).restore(target)
    assert step == 3
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_empty_folder_gives_none(tmp_path):
    assert checkpoint.Checkpoints(tmp_path / "new", {}).restore(target) is None


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_keeps_the_last_two_and_the_best(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.9, 3: 0.5, 4: None, 5: 0.3})
    assert steps_in(tmp_path) == [2, 4, 5]


def test_the_best_survives_a_new_process(tmp_path):
    write(tmp_path, {1: 0.9, 2: 0.1, 3: 0.2})
    write(tmp_path, {4: 0.3, 5: 0.4})
    assert steps_in(tmp_path) == [1, 4, 5]


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path, {})
    donated = state(7)
    checkpoints.save(7, donated)
    jax.block_until_ready(spoil(donated))
    checkpoints.close()
    step, restored = checkpoint.Checkpoints(tmp_path, {}).restore(target)
    assert step == 7
    assert checkpoint.checksums(restored) == checkpoint.checksums(state(7))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "flip" and content:
        content[len(content) // 3] ^= 16
    path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[how])


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
def test_damage_to_any_file_is_found_or_harmless(three, tmp_path, how, capfd):
    """Whatever file is damaged: what comes back is bit for bit the checkpoint it says it is."""
    good = {step: checkpoint.checksums(state(step)) for step in (1, 2, 3)}
    fell_back = 0
    for name in files(three / "3"):
        folder = tmp_path / name.replace("/", "_")
        shutil.copytree(three, folder)
        spoil(folder / "3" / name, how)
        checkpoints = checkpoint.Checkpoints(folder, {})
        step, restored = checkpoints.restore(target)
        assert checkpoint.checksums(restored) == good[step], name
        fell_back += step == 2
        assert ("is damaged" in capfd.readouterr().err) == (step == 2)
        checkpoints.save(3 if step == 2 else 4, state(3))  # the run goes on over it
        checkpoints.close()
    assert fell_back > 0


def test_all_damaged_is_an_error_that_says_so(three, tmp_path):
    shutil.copytree(three, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("d/*"):
        spoil(path, "empty")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        checkpoint.Checkpoints(tmp_path / "copy", {}).restore(target)


def test_the_configuration_is_in_each_checkpoint(three):
    import orbax.checkpoint as ocp

    meta = ocp.CheckpointManager(three).restore(3, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    assert meta["config"] == {"seed": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_a_flag_and_a_second_one_kills(number):
    with checkpoint.stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) != signal.SIG_DFL or number == signal.SIGTERM


def test_handlers_are_put_back():
    code = (
        "import signal; from cnnjax import checkpoint\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "with checkpoint.stop_on_signal(): pass\n"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checksums_tell_dtype_value_and_name_apart():
    one = {"a": np.zeros(3, np.float32)}
    assert checkpoint.checksums(one) == checkpoint.checksums({"a": np.zeros(3, np.float32)})
    for other in ({"a": np.full(3, 1e-45, np.float32)}, {"b": np.zeros(3, np.float32)}, {"a": np.zeros(4, np.float32)}):
        assert checkpoint.checksums(other) != checkpoint.checksums(one)
    json.dumps(checkpoint.checksums(one))
