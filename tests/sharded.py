"""Tree of arrays that a rule splits over the devices, for tests; also run by each process of a two-process test.

python tests/sharded.py FOLDER
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

import chex
import jax
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from cnnjax import checkpoint, sharding


def split_last(mesh, tree):
    """Rule for ``sharding.state_sharding`` that splits the last axis that the devices divide evenly."""

    def rule(x):
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], sharding.AXIS) if axes else PartitionSpec())

    return jax.tree.map(rule, tree)


def splitting(rule=split_last):
    """Makes ``rule`` decide in the block how states lie on the mesh."""
    return mock.patch.object(sharding, "state_sharding", rule)


def tree(seed=0):
    """Host arrays of several types and ranks, split along different axes, one not at all."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.normal(size=(3, 3, 5, 16)).astype(np.float32),
        "rows": rng.normal(size=(24, 3)).astype(ml_dtypes.bfloat16),
        "middle": rng.integers(0, 2**31, (2, 8, 7), np.int32),
        "mask": rng.integers(0, 2, 40).astype(bool),
        "odd": rng.normal(size=(5, 3)).astype(np.float32),
        "step": np.int32(seed),
        "large": rng.normal(size=(8, 20000)).astype(np.float32),  # in files of its own, a part per process
    }


def target(tree, mesh):
    """Shapes, dtypes and shardings into which a checkpoint of ``tree`` is read."""
    where = sharding.state_sharding(mesh, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def assert_is(placed, host):
    """Checks that ``placed`` has the values of ``host``, split by the rule."""
    mesh = jax.tree.leaves(placed)[0].sharding.mesh
    assert jax.tree.map(lambda x: x.sharding, placed) == sharding.state_sharding(mesh, host)
    for x, whole in zip(jax.tree.leaves(placed), jax.tree.leaves(host), strict=True):
        assert (x.shape, x.dtype) == (whole.shape, whole.dtype)
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])


def with_last_element_changed(x):
    """Copy of the array with another value in its last element."""
    last = (-1,) * x.ndim
    return x.at[last].set(x[last] == 0)


def damage(step):
    """Cuts the largest file that the last process wrote, which no other reads."""
    written = (step / "state" / f"ocdbt.process_{jax.process_count() - 1}" / "d").iterdir()
    largest = max(written, key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    assert size > 1e5
    os.truncate(largest, size // 2)


def restore(folder, host, mesh):
    """Newest good checkpoint, read with the shardings of the rule."""
    with contextlib.closing(checkpoint.Checkpoints(folder, {})) as checkpoints:
        return checkpoints.restore(lambda _: target(host, mesh))


def check(folder):
    """Places, sums, saves and restores a split tree, also from a damaged file; every process of a run calls it."""
    mesh, host = sharding.make_mesh(), tree(3)
    with splitting():
        placed = sharding.place(host, mesh)
        assert_is(placed, host)
        assert {x.is_fully_replicated for x in placed.values()} == {True, False}
        assert checkpoint.checksums(placed) == checkpoint.checksums(host)
        with contextlib.closing(checkpoint.Checkpoints(folder, {})) as checkpoints:
            for step in (2, 3):
                checkpoints.save(step, sharding.place(tree(step), mesh))
        step, restored = restore(folder, host, mesh)
        assert step == 3
        assert_is(restored, host)
        if jax.process_index() == 0:
            damage(folder / "3")
        multihost_utils.sync_global_devices("damaged")
        step, restored = restore(folder, host, mesh)
        assert step == 2
        assert_is(restored, tree(2))
    whole = sharding.place(placed, mesh)  # from split to replicated
    assert_is(whole, host)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole), host, strict=True)
    for name, x in placed.items():
        changed = placed | {name: jax.jit(with_last_element_changed, out_shardings=x.sharding)(x)}
        found, good = checkpoint.checksums(changed), checkpoint.checksums(host)
        assert {path for path in good if good[path] != found[path]} == {f"['{name}']"}


if __name__ == "__main__":
    sharding.start()
    check(Path(sys.argv[1]))
