"""Checkpoints: exact, the best and the last kept, every kind of damage found, for every sharding."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
import sharded
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax import checkpoint, sharding, train
from cnnjax.types import UserError

MESH = sharding.make_mesh(jax.devices()[:1])


def state(value=0.0):
    initial = train.init_state(tiny.plan(ema_decay=0.9), tiny.variables())
    return sharding.place(jax.tree.map(lambda x: x + np.asarray(value, x.dtype), initial), MESH)


def target(_):
    return train.abstract_state(tiny.plan(ema_decay=0.9), tiny.variables(), MESH, 0)


def write(folder, scores):
    checkpoints = checkpoint.Checkpoints(folder, {"seed": 0})
    for step, score in scores.items():
        checkpoints.save(step, state(step), score)
    checkpoints.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Folder with checkpoints 1, 2, 3."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    write(folder, {1: 0.9, 2: 0.1, 3: 0.2})
    return folder


def test_round_trip_is_bit_exact(three):
    step, restored = checkpoint.Checkpoints(three, {}).restore(target)
    assert step == 3
    chex.assert_trees_all_equal(restored, state(3), strict=True)


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


@pytest.mark.parametrize(
    ("how", "every"),
    [("flip", 3), *(pytest.param(x, 1, marks=pytest.mark.exhaustive) for x in ("flip", "cut", "empty", "delete"))],
)
def test_damage_to_any_file_is_found_or_harmless(three, tmp_path, how, every, capfd):
    """The restored state is bit for bit that of the step that it names, whichever file is damaged."""
    good = {step: checkpoint.checksums(state(step)) for step in (1, 2, 3)}
    fell_back = 0
    for name in files(three / "3")[::every]:
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


def test_free_space_is_measured_when_nothing_is_being_written(tmp_path, monkeypatch):
    checkpoints, seen = checkpoint.Checkpoints(tmp_path, {}), []
    measure = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (seen.append(sorted(os.listdir(path))), measure(path))[1])
    for step in (1, 2):
        checkpoints.save(step, {"a": np.zeros(2**23, np.float32)})
    checkpoints.close()
    assert seen == [[], ["1"]]


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


def meshes():
    """Eight devices in a row, and as two rows of four."""
    auto = jax.sharding.AxisType.Auto
    return sharding.make_mesh(), jax.make_mesh((2, 4), ("high", "wide"), axis_types=(auto, auto))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8, bool])
def test_a_checksum_does_not_depend_on_how_the_array_lies(dtype):
    array = np.random.default_rng(0).integers(0, 2, (8, 4, 16)).astype(dtype)
    row, grid = meshes()
    want = {"": zlib.crc32(array.tobytes())}
    assert checkpoint.checksums(array) == want
    for spec in (P(), P("data"), P(None, None, "data")):
        assert checkpoint.checksums(jax.device_put(array, NamedSharding(row, spec))) == want
    for spec in (P("high", "wide"), P(None, "wide"), P("high"), P(None, None, ("wide", "high"))):
        assert checkpoint.checksums(jax.device_put(array, NamedSharding(grid, spec))) == want


def test_checksums_of_parts_amid_zeros_combine_to_that_of_the_whole():
    rng = np.random.default_rng(0)
    for parts in (1, 2, 3, 8):
        owner, whole = rng.integers(0, parts, (5, 6, 7)), rng.normal(size=(5, 6, 7)).astype(np.float32)
        sums = [checkpoint._crc32(np.where(owner == i, whole, 0)) for i in range(parts)]
        assert checkpoint._combined(np.array(sums, np.uint32), whole.nbytes) == zlib.crc32(whole.tobytes())


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data")], ids=str)
def test_a_change_in_any_part_changes_the_checksum(spec):
    array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    placed = jax.device_put(array, NamedSharding(sharding.make_mesh(), spec))
    good = checkpoint.checksums(placed)
    for shard in placed.addressable_shards[: 1 if placed.is_fully_replicated else 8]:
        parts = [np.array(part.data) for part in placed.addressable_shards]
        parts[shard.device.id].ravel()[-1] += 1
        on_devices = [jax.device_put(x, s.device) for x, s in zip(parts, placed.addressable_shards, strict=True)]
        damaged = jax.make_array_from_single_device_arrays(array.shape, placed.sharding, on_devices)
        assert checkpoint.checksums(damaged) != good, shard.index


def test_a_split_tree_over_eight_devices(tmp_path, capfd):
    sharded.check(tmp_path)
    assert "checkpoint 3 in" in capfd.readouterr().err


def test_a_split_tree_over_two_processes(tmp_path):
    """Two processes of four devices each, over loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, sharded.__file__, str(tmp_path / "checkpoints")],
            env={**environment, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-5000:]
    assert all("checkpoint 3 in" in text for text in outputs)
    assert "processes [1] cannot read their part" in outputs[0]


def test_a_checkpoint_may_be_read_into_another_sharding(three):
    """One device writes it, and eight read it, split."""
    written = jax.tree.map(np.asarray, state(3))
    with sharded.splitting():
        goal = sharded.target(written, sharding.make_mesh())
        _, restored = checkpoint.Checkpoints(three, {}).restore(lambda _: goal)
        sharded.assert_is(restored, written)
