"""Data parallelism: a one-axis mesh, replicated state, batches split over all devices of all processes."""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax.types import Batch, PyTree, UserError

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


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given) along the axis ``data``."""
    devices = jax.devices() if devices is None else devices
    # Explicit axes, the default since JAX 0.10, make Linen's Dropout fail.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies host or device arrays to every device; always a copy, so that the result may be donated."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.array(x), np.shape(x)), tree)


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays split over the mesh."""
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for name, x in batch.items()}


def local_rows(batch_size: int) -> slice:
    """Which rows of a global batch this process loads."""
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
