"""Transfer learning: a base network without its top under a new head, whose frozen phase runs the base only once.

While the base is frozen and images are not augmented, the head's input never changes: ``features`` computes it for all
images, keeps it on disk, and the frozen phase trains the head on it alone. ``classify.loss_fn`` takes both kinds of
batches: with ``image``, and with ``features``.
"""

import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import numpy as np

from cnnjax import nn, optim, plot, report, sharding, train
from cnnjax.data import pipeline
from cnnjax.data.sources import Arrays
from cnnjax.tasks.classify import Preprocess
from cnnjax.types import Array, Batch, Key, PyTree, Schedule, UserError
from cnnjax.weights import Published, preprocess

NORMS = r"base/(.*/)?norm\d*/.*"


class Transfer(linen.Module):
    """``base``, a model made with ``num_classes=None``, its globally averaged last maps, dropout, a dense layer.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 and the base's endpoints. The
    parameters are ``base/…`` and ``head/dense/…``. ``from_pooled`` is the head alone, on the endpoint ``pooled``.
    """

    base: linen.Module
    num_classes: int
    dropout: float = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The base's."""
        return self.base.image_shape

    def setup(self) -> None:
        self.head = nn.Head(self.num_classes, self.dropout)

    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        return self.head(endpoints["pooled"], train), endpoints

    def from_pooled(self, pooled: jax.Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits of ``[n, c]``, the base's globally averaged last maps."""
        return self.head(pooled, train), {"pooled": pooled}


def stages(base: linen.Module) -> tuple[str, ...]:
    """Names of the base's parts that have parameters, in the order in which an image passes them."""
    order: dict[str, None] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        if len(context.module.path) == 1:
            order[context.module.path[0]] = None
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with linen.intercept_methods(record):
        tree = jax.eval_shape(base.init, keys, np.zeros((1, *base.image_shape), np.float32))
    return tuple(name for name in order if name in tree["params"])


def rules(
    names: Sequence[str],
    train_from: str,
    schedule: Callable[[float], Schedule],
    *,
    base_factor: float = 1.0,
    layer_decay: float = 1.0,
    frozen_norms: bool = False,
) -> tuple[optim.Rule, ...]:
    """Which part of a ``Transfer`` trains how fast.

    Args:
      names: ``stages`` of the base.
      train_from: "head": the base is frozen; "all"; or the part from which on the base trains.
      schedule: factor → learning rate by step, that factor multiplied in.
      base_factor: the rate of the base's last part is this, times ``layer_decay``, times the head's.
      layer_decay: each part's rate is this times that of the part behind it (Howard & Ruder 2018, sec. 3.2).
      frozen_norms: BatchNorm does not train, so that it uses, and keeps, its statistics of the published data.

    Raises:
      UserError: the base has no part ``train_from``.
    """
    if train_from not in ("head", "all", *names):
        raise UserError(f"train from head, all or a part of the base ({', '.join(names)}); got {train_from!r}")
    first = {"head": len(names), "all": 0}.get(train_from, names.index(train_from) if train_from in names else 0)
    head: tuple[optim.Rule, ...] = ((r"head/.*", schedule(1.0)),)
    frozen = tuple((rf"base/{name}/.*", None) for name in names[:first])
    if first == len(names):
        return (*head, (r"base/.*", None))
    norms: tuple[optim.Rule, ...] = ((NORMS, None),) if frozen_norms else ()
    if layer_decay == 1:  # one group, one line in tables
        return (*head, *norms, *frozen, (r"base/.*", schedule(base_factor)))
    factors = {names[i]: base_factor * layer_decay ** (len(names) - i) for i in range(first, len(names))}
    return (*head, *norms, *frozen, *((rf"base/{name}/.*", schedule(factor)) for name, factor in factors.items()))


def with_norm_momentum(base: linen.Module, momentum: float | None) -> linen.Module:
    """``base`` whose BatchNorm averages its statistics with this momentum; None: as it is.

    Published networks were trained for 100,000s of steps with 0.99 or 0.999, which lags behind a short fine-tuning.

    Raises:
      UserError: it has no BatchNorm.
    """
    if momentum is None:
        return base
    if not hasattr(base, "momentum"):
        raise UserError(f"{type(base).__name__} has no BatchNorm whose momentum could be {momentum}: leave that out")
    return base.clone(momentum=momentum)


def variables(model: Transfer, base: PyTree, key: Key) -> PyTree:
    """Those of the base under a new head, drawn from ``key``."""
    shapes = jax.eval_shape(
        lambda v, x: model.base.apply(v, x)[1]["pooled"], base, np.zeros((1, *model.base.image_shape), np.float32)
    )
    head = model.init(key, np.zeros(shapes.shape, np.float32), method="from_pooled")
    return {name: {"base": tree, **(head["params"] if name == "params" else {})} for name, tree in base.items()}


def show_plan(plan: train.Plan, params: PyTree, run: report.Run) -> None:
    """Which group of parameters trains when, at what rate: a table, and plan.png in the run folder."""
    paths = optim.flatten(params)
    rows, curves, begin = [], {}, 0
    for phase in plan.phases:
        index = optim.match(list(paths), phase.rules)
        for i, (pattern, schedule) in enumerate(phase.rules):
            size = sum(leaf.size for path, leaf in paths.items() if index[path] == i)
            rates = "frozen" if schedule is None else f"{schedule(0):.2g} … {schedule(phase.steps - 1):.2g}"
            rows.append({"phase": phase.name, "parts": pattern, "parameters": f"{size:,}", "learning rate": rates})
            if schedule is not None:
                steps = np.unique(np.linspace(0, phase.steps - 1, 200, dtype=int))
                curve = np.array([float(schedule(step)) for step in steps])
                curves[f"{phase.name}: {pattern}"] = (begin + steps, curve)
        begin += phase.steps
    report.table("plan", rows)
    if run.writes:
        plot.save(plot.lines(curves, "step", "learning rate", log=True), run.dir / "plan.png")


def features(
    base: linen.Module,
    variables: PyTree,
    preprocess: Preprocess,
    batches: Iterable[Batch],
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """The endpoint ``pooled`` of every image: float32 ``[n, c]``, in inference mode.

    Args:
      variables: the base's own.
      preprocess: uint8 images → what the base takes.
      batches: with ``image`` and ``mask``, as ``pipeline.eval_batches`` gives them.
    """

    def compute(variables: PyTree, batch: Batch) -> tuple[Array, Array]:
        _, endpoints = base.apply(variables, preprocess(batch["image"]), train=False)
        return endpoints["pooled"], batch["mask"]

    step = train.make_eval_step(compute, mesh)
    parts = [jax.device_get(step(variables, sharding.shard_batch(batch, mesh))) for batch in batches]
    pooled, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
    return pooled[mask > 0].astype(np.float32)


def fingerprint(trees: Sequence[Any], facts: str) -> str:
    """SHA-256 of all arrays in ``trees``, bit for bit, and of ``facts``: what cached features depend on."""
    total = hashlib.sha256(facts.encode())
    for leaf in jax.tree.leaves(list(trees)):
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def cached_features(
    folder: Path,
    entry: Published,
    base: linen.Module,
    variables: PyTree,
    images: Arrays,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> dict[str, np.ndarray]:
    """``features`` of images as ``entry`` wants them prepared, and each one's ``label``; kept in ``folder``.

    A file's name is the fingerprint of weights, images and preparation, so that no other features are ever taken.
    """
    facts = f"{base!r} {entry.preprocess} {mesh.devices.flat[0].platform}"
    path = folder / f"{fingerprint((variables, images.images), facts)}.npz"
    prepare = functools.partial(preprocess, mode=entry.preprocess)
    batches = pipeline.eval_batches(images, batch_size)
    found = cached(path, lambda: features(base, variables, prepare, batches, mesh))
    return {"features": found, "label": images.labels}


def cached(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the file, else ``compute()``, which is then written there; a damaged file is computed again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["features"]
    # Absent, or damaged, which its CRC-32 tells.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        result = compute()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, features=result)
        temporary.replace(path)
    return result
