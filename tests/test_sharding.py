"""Sharding of arrays over the mesh: the rule for states, and the copies that follow it."""

import jax
import numpy as np
import pytest
import sharded
from jax.sharding import PartitionSpec as P

from cnnjax import sharding
from cnnjax.types import UserError


def test_a_state_is_replicated():
    mesh, host = sharding.make_mesh(), sharded.tree()
    for tree in (host, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), host)):
        where = sharding.state_sharding(mesh, tree)
        assert jax.tree.structure(where) == jax.tree.structure(host)
        assert {s.spec for s in jax.tree.leaves(where)} == {P()}
    placed = sharding.place(host, mesh)
    sharded.assert_is(placed, host)
    assert all(len(x.sharding.device_set) == 8 and x.is_fully_replicated for x in placed.values())


def test_place_follows_a_rule_that_splits():
    mesh, host = sharding.make_mesh(), sharded.tree()
    with sharded.splitting():
        placed = sharding.place(host, mesh)
        sharded.assert_is(placed, host)
        assert [s.data.shape for s in placed["kernel"].addressable_shards] == [(3, 3, 5, 2)] * 8
        assert placed["middle"].addressable_data(0).shape == (2, 1, 7)
        sharded.assert_is(sharding.place(sharding.place(host, sharding.make_mesh(jax.devices()[:1])), mesh), host)
    sharded.assert_is(sharding.place(placed, mesh), host)


@pytest.mark.parametrize("rule", [sharding.state_sharding, sharded.split_last])
def test_place_copies_so_that_the_result_may_be_donated(rule):
    mesh, host = sharding.make_mesh(), {"kernel": np.arange(32, dtype=np.float32)}
    with sharded.splitting(rule):
        first = sharding.place(host, mesh)
        second = sharding.place(first, mesh)
        for placed in (second, first):
            jax.block_until_ready(jax.jit(lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0)(placed))
            assert placed["kernel"].is_deleted()
        np.testing.assert_array_equal(host["kernel"], np.arange(32))


def test_batches_are_split_by_rows():
    mesh = sharding.make_mesh()
    rows = np.arange(48).reshape(16, 3)
    split = sharding.shard_batch({"x": rows}, mesh)["x"]
    for i, shard in enumerate(split.addressable_shards):
        np.testing.assert_array_equal(shard.data, rows[2 * i : 2 * i + 2])
    assert sharding.local_rows(16) == slice(0, 16)


def test_a_batch_that_does_not_divide_is_refused_with_those_that_do():
    mesh = sharding.make_mesh()
    sharding.check_batch(16, mesh, accumulate=2)
    with pytest.raises(UserError, match=r"batch size 20 .* 8 devices × 2 accumulation steps: use 16 or 32"):
        sharding.check_batch(20, mesh, accumulate=2)
    with pytest.raises(UserError, match=r"use 8$"):
        sharding.check_batch(4, mesh)
