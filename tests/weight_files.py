"""Files of weights, written without cnnjax or as a run writes them, and a reader that compares shapes and types."""

import flax.struct
import h5py
import numpy as np

from cnnjax.checkpoint import Checkpoints
from cnnjax.types import PyTree
from cnnjax.weights import formats


def read(path):
    """(source of the names, values by key)."""
    with formats.opened(path) as content:
        values = {key: np.array(tensor.read()) for key, tensor in content.tensors.items()}
        for key, tensor in content.tensors.items():
            assert (tensor.shape, tensor.dtype) == (values[key].shape, values[key].dtype)
    return content.names, values


def arrays(*names):
    """Random float32 arrays of one to four axes."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(3, 2, 4, 5)[: 1 + i % 4]).astype(np.float32) for i, name in enumerate(names)}


def legacy(path, data, root="", **options):
    """Writes HDF5 as Keras 2 and its predecessors did, with names as bytes."""
    with h5py.File(path, "w", **options) as file:
        group = file.require_group(root or "/")
        group.attrs["layer_names"] = [name.split("/")[0].encode() for name in data]
        for name, value in data.items():
            group.create_dataset(name, data=value)
            group[name.split("/")[0]].attrs["weight_names"] = [name.split("/", 1)[1].encode()]
        if root:
            file.create_dataset("optimizer_weights/adam/conv1/kernel/m:0", data=np.ones(3))
            file.create_dataset("optimizer_weights/adam/on", data=np.array([True]))
    return path


@flax.struct.dataclass
class State:
    """State with the fields of ``train.TrainState``."""

    step: np.ndarray
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree


def variables(factor=1.0):
    """(variables as a tree, variables by key)."""
    values = {key: value * np.float32(factor) for key, value in arrays("conv", "dense", "norm", "mean").items()}
    nested = {"a": {"conv": {"kernel": values["conv"]}}, "b'c": {"kernel": values["dense"], "scale": values["norm"]}}
    flat = {
        "params/a/conv/kernel": values["conv"],
        "params/b'c/kernel": values["dense"],
        "params/b'c/scale": values["norm"],
        "batch_stats/a/mean": values["mean"],
    }
    return {"params": nested, "batch_stats": {"a": {"mean": values["mean"]}}}, flat


def run_folder(path, *, ema):
    """Writes a run folder with checkpoints 3 and 20; the weights are those of ``variables(step)``."""
    checkpoints = Checkpoints(path / "checkpoints", {})
    for step in (3, 20):
        tree, average = variables(step if not ema else -1)[0], variables(step)[0] if ema else None
        stats = {"batch_stats": tree["batch_stats"]}
        checkpoints.save(step, State(np.int32(step), tree["params"], stats, {"mu": tree["params"]}, average), 0.5)
    checkpoints.close()
    return path
