"""Published networks at work: which one, what its images must look like, and what it says of each image of a source.

An image that cannot be read does not end the run: it is marked, told of, and the others go on.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen
from jax.sharding import Mesh

from cnnjax import report, sharding, train, weights
from cnnjax.data import host, pipeline
from cnnjax.data.sources import Source
from cnnjax.types import Array, Batch, PyTree, UserError

Resize = Literal["crop", "squeeze", "square"]


class Network(NamedTuple):
    """A published network, ready to be called."""

    entry: weights.Published
    model: linen.Module
    variables: PyTree

    def logits(self, variables: PyTree, images: Array) -> Array:
        """uint8 [n, h, w, 3] → [n, classes]; ``variables`` are ``self.variables``, as an argument of what is jitted."""
        return self.model.apply(variables, weights.preprocess(images, self.entry.preprocess), train=False)[0]


def network(tag: str, file: Path | None = None, *, random: bool = False, **overrides: Any) -> Network:
    """The network called ``tag``.

    Args:
      tag: of ``weights.published()``; says model, preprocessing, image size.
      file: has its weights; None: the cache, or the publisher.
      random: fresh weights, to try what is around them.
      **overrides: fields of the model, such as ``num_classes=None`` for one without its top.

    Raises:
      UserError: unknown tag, or weights that cannot be had or do not fit.
    """
    known = weights.published()
    if tag not in known:
        close = difflib.get_close_matches(tag, known, n=3) or sorted(known)
        raise UserError(f"no published weights {tag!r}: did you mean {', '.join(close)}?")
    entry = known[tag]
    model = entry.create(**overrides)
    if random:
        images = np.zeros((1, entry.image_size, entry.image_size, 3), np.float32)
        return Network(entry, model, jax.jit(model.init)(jax.random.key(0), images))
    return Network(entry, model, weights.load(tag if file is None else file, model, image_size=entry.image_size))


class Geometry(Protocol):
    """What ``host_transform`` goes by; ``weights.Published`` has it."""

    @property
    def image_size(self) -> int: ...

    @property
    def resize(self) -> int: ...

    @property
    def resample(self) -> host.Resample: ...


def host_transform(entry: Geometry, resize: Resize) -> host.Transform:
    """Image of any size → ``entry.image_size`` square: as its publisher crops it, squeezed, or its central square."""
    size, resample = entry.image_size, entry.resample
    if resize == "squeeze":
        return host.squeeze(size, resample)
    if resize == "square":
        return host.crop_and_resize(size, resample)
    return host.resize_and_crop(entry.resize, size, resample)


@dataclass(frozen=True)
class Marked:
    """The images of ``source``, each brought to ``size`` by ``transform``; an unreadable one is black, its label −1."""

    source: Source
    transform: host.Transform
    size: int
    channels: int = 3

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of ``source``."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.source[index]
        except host.CorruptImageError:
            return {"image": np.zeros((self.size, self.size, self.channels), np.uint8), "label": -1}
        return {**example, "image": self.transform(example["image"])}

    def errors(self, labels: np.ndarray) -> list[str]:
        """Why the images with a label of −1 cannot be read.

        Raises:
          UserError: none of all can be read.
        """
        found = []
        for index in np.flatnonzero(labels < 0):
            try:
                self.source[int(index)]
            except host.CorruptImageError as error:
                found.append(str(error))
        if len(labels) and (labels < 0).all():
            raise UserError(f"none of the {len(labels)} images can be read{f', such as {found[0]}' if found else ''}")
        return found


def for_each(
    compute: Callable[[PyTree, Batch], PyTree], variables: PyTree, source: Source, batch_size: int, mesh: Mesh
) -> PyTree:
    """``compute(variables, batch)``, leaves [n, …], over all of ``source`` in order, as NumPy arrays [len(source), …].

    Batches are split over the mesh and all of one shape. Every process gets everything.

    Raises:
      UserError: the batch size does not divide over the devices.
    """
    sharding.check_batch(batch_size, mesh)
    # As many batches as that takes, but no larger than they must be: little is computed for nothing in the last one.
    steps = -(-len(source) // batch_size)
    batch_size = -(-len(source) // (steps * mesh.size)) * mesh.size
    step = train.make_eval_step(compute, mesh)
    variables = sharding.replicate(variables, mesh)
    progress = report.Progress(steps, batch_size, 0)
    results = []
    for number, batch in enumerate(pipeline.eval_batches(source, batch_size), 1):
        results.append(jax.device_get(step(variables, sharding.shard_batch(batch, mesh))))
        progress.step(number)
    progress.close()
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(source)], *results)
