"""Data parallelism: a mesh of one axis, the rule that lays the state on it, and batches split over its devices."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax.types import Array, Batch, PyTree, UserError

AXIS = "data"


def start() -> None:
    """Joins a multi-process run if the environment describes one; call before anything else touches JAX.

    ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say which process this is.

    Raises:
      UserError: only some of the three are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return
    if missing:
        raise UserError(f"a multi-process run needs {', '.join(names)}; not set: {', '.join(missing)}")
    address, count, index = (os.environ[name] for name in names)
    jax.distributed.initialize(address, int(count), int(index))


@contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """Makes the block fail in every process if it fails in one, so that none waits for another that gave up.

    Args:
      what: what a process cannot do where the block fails.
    """
    error = None
    try:
        yield
    except Exception as raised:  # raised again below, when all processes know
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if failed.any() and error is None:
            error = UserError(f"processes {np.flatnonzero(failed).tolist()} cannot {what}: see their errors")
    if error is not None:
        raise error


def check_same(values: Mapping[str, Any]) -> None:
    """Checks that all processes have the same values, which JSON can write.

    Raises:
      UserError: they have not; the message names those that differ, in every process.
    """
    if jax.process_count() == 1:
        return
    sums = {name: _sum(value) for name, value in values.items()}
    if len({*_gathered([_sum(sorted(sums))])[:, 0]}) > 1:
        raise UserError("the processes of this run run different scripts: start the same command in each")
    gathered = _gathered([sums[name] for name in sorted(sums)])
    differ = [name for name, column in zip(sorted(sums), gathered.T, strict=True) if len({*column}) > 1]
    if differ:
        here = ", ".join(f"{name} is {values[name]!r}" for name in differ)
        raise UserError(
            f"the processes have different settings: in process {jax.process_index()} {here}: "
            "start the same command in each"
        )


def _sum(value: Any) -> int:
    return zlib.crc32(json.dumps(value).encode())


def _gathered(sums: list[int]) -> np.ndarray:
    """One row of sums for each process."""
    return multihost_utils.process_allgather(np.array(sums, np.uint32)).reshape(jax.process_count(), -1)


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given) along the axis ``data``."""
    devices = jax.devices() if devices is None else devices
    # Explicit axes, the default since JAX 0.10, make Linen's Dropout fail.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding under which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """Sharding under which the leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def state_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of a state's arrays, or of a model's variables: the one rule is that all are replicated.

    Args:
      tree: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The tree with a ``NamedSharding`` in place of each array.
    """
    return jax.tree.map(lambda _: replicated(mesh), tree)


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies host or device arrays to the mesh, each as ``state_sharding`` says.

    The result is always a copy, so that it may be donated. Every process must hold all values of a host array.
    """

    def put(x: Array, where: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return jax.jit(jnp.copy, out_shardings=where)(x)  # no process holds the whole array
        return jax.make_array_from_process_local_data(where, np.array(x), np.shape(x))

    return jax.tree.map(put, tree, state_sharding(mesh, tree))


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over the mesh by rows, from this process's rows of a batch."""
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for name, x in batch.items()}


def local_rows(batch_size: int) -> slice:
    """Rows of a global batch that this process loads."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError unless ``batch_size`` splits evenly over the devices and accumulation steps."""
    parts = mesh.size * accumulate
    if batch_size < parts or batch_size % parts:
        down, up = batch_size // parts * parts, (batch_size // parts + 1) * parts
        raise UserError(
            f"batch size {batch_size} does not divide over {mesh.size} devices × {accumulate} accumulation steps: "
            f"use {f'{down} or ' if down else ''}{up}"
        )
