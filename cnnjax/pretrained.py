"""Published networks with the preprocessing of their images; cached features of images.

A base for transfer learning, and its output for a batch::

    base = pretrained.network("mobilenet_v1_0.75_224.keras", num_classes=None)
    base.model.apply(base.variables, base.prepare(images_uint8))
"""

import difflib
import functools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cnnjax import atomic, models, sharding, train, weights
from cnnjax.data import fingerprint, pipeline, transforms
from cnnjax.data.preparation import Resample
from cnnjax.data.sources import Arrays, Mapped, Source, in_memory_if_small
from cnnjax.data.transforms import Transform
from cnnjax.tasks import Prepare
from cnnjax.tasks.classify import unit
from cnnjax.types import Array, Batch, PyTree, Rows, Sums, UserError
from cnnjax.weights.hub import checksum
from cnnjax.weights.hub.preprocess import Mode

Resize = Literal["crop", "squeeze", "square"]


class Framing(Protocol):
    """Numbers that ``host_transform`` needs; ``weights.Published`` has them."""

    @property
    def image_size(self) -> int: ...

    @property
    def resize(self) -> int: ...

    @property
    def resample(self) -> Resample: ...


Preprocess = Mode


class Entry(Framing, Protocol):
    """Facts about a network and its images, of a published one or of one that a run has trained."""

    @property
    def model(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, Any]: ...

    @property
    def preprocess(self) -> Preprocess: ...


def prepare(images: Array, mode: Preprocess) -> Array:
    """uint8 [n, h, w, c], or floats in 0 … 255 → what a model takes."""
    return unit(images) if mode == "unit" else weights.preprocess(images, mode)


class Network(NamedTuple):
    """Network with the preparation of its images, ready to be called."""

    entry: Entry
    model: linen.Module
    variables: PyTree

    def prepare(self, images: Array) -> Array:
        """uint8 [n, h, w, 3], or floats in 0 … 255 → what the model takes."""
        return prepare(images, self.entry.preprocess)


def create(entry: weights.Published, **overrides: Any) -> linen.Module:
    """Model for the weights of ``entry``; ``overrides`` are fields of it, such as ``num_classes=None``."""
    return models.create(entry.model, **{"num_classes": entry.classes, **entry.fields, **overrides})


def published(tag: str) -> weights.Published:
    """Entry of ``weights.published()`` called ``tag``.

    Raises:
      UserError: there is none; the message names similar ones.
    """
    known = weights.published()
    if tag not in known:
        close = difflib.get_close_matches(tag, known, n=3) or sorted(known)
        raise UserError(f"no published weights {tag!r}: did you mean {', '.join(close)}?")
    return known[tag]


def network(tag: str, file: Path | None = None, *, random: bool = False, **overrides: Any) -> Network:
    """Loads the network called ``tag``.

    Args:
      tag: one of ``weights.published()``; says model, preprocessing, image size.
      file: file with its weights; None: the cache, or the publisher.
      random: take fresh weights, to try the code around them.
      **overrides: fields of the model, such as ``num_classes=None`` for one without its top.

    Raises:
      UserError: unknown tag, or weights that cannot be loaded or do not fit.
    """
    entry = published(tag)
    model = create(entry, **overrides)
    if random:
        images = np.zeros((1, entry.image_size, entry.image_size, 3), np.float32)
        return Network(entry, model, jax.jit(model.init)(jax.random.key(0), images))
    return Network(entry, model, weights.load(tag if file is None else file, model, image_size=entry.image_size))


def host_transform(framing: Framing, resize: Resize) -> transforms.Geometric:
    """Transform of an example of any size to ``image_size`` square.

    Args:
      resize: crop: the publisher's, shorter side to ``framing.resize``, then the center; squeeze: all of the image, its
        proportions lost; square: the largest central square.
    """
    return transforms.fitted(resize, framing.image_size, framing.resize, framing.resample)


def features(
    base: linen.Module, variables: PyTree, prepare: Prepare, batches: Iterable[Batch], mesh: Mesh
) -> np.ndarray:
    """Endpoint ``pooled`` of every image: float32 ``[n, c]``, in inference mode.

    Args:
      variables: those of the base.
      prepare: uint8 images → what the base takes.
      batches: with ``image`` and ``example_mask``, as ``pipeline.eval_batches`` gives them.
    """

    def compute(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        _, endpoints = base.apply(variables, prepare(batch["image"]), train=False)
        return {}, {"features": endpoints["pooled"]}

    step, placed = train.make_eval_step(compute, mesh), sharding.place(variables, mesh)  # once, not for each batch
    _, rows = train.evaluate(step, placed, batches, mesh)
    return rows["features"].astype(np.float32)


def cached_features(
    base: Network, splits: Mapping[str, Source], transform: Transform, batch_size: int, mesh: Mesh, limit: int
) -> dict[str, Arrays]:
    """``features`` and ``label`` of every image of each split; kept on disk in the cache of weights.

    The name of a file is the fingerprint of weights, images and preparation, so that no other features are used.

    Args:
      transform: brings images to the shape that the base takes, where a split is not in memory.
      limit: bytes of a split's images to hold in memory at most; where there are more, nothing is returned.
    """
    entry, model, variables = base
    facts = f"{model!r} {entry.preprocess} {mesh.devices.flat[0].platform}"
    found: dict[str, Arrays] = {}
    for part, source in splits.items():
        source = source if isinstance(source, Arrays) else in_memory_if_small(Mapped(source, transform), limit)
        if not isinstance(source, Arrays):
            print("the images exceed --in-memory-bytes: the frozen phase trains on augmented images, not on features")
            return {}
        name = fingerprint.of_arrays((variables, source.fields["image"]), facts)
        batches = pipeline.eval_batches(source, batch_size)
        compute = functools.partial(features, model, variables, base.prepare, batches, mesh)
        known = cached(checksum.cache_folder() / "features" / f"{name}.npz", compute)
        found[part] = Arrays({"features": known, "label": source.fields["label"]}, source.classes)
    return found


def cached(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Array in the file, else ``compute()``, which is then written there; a damaged file is computed again."""
    known: np.ndarray | None = None
    try:
        with np.load(path, allow_pickle=False) as file:
            known = file["features"]
    # The file is absent, or damaged, which its CRC-32 shows.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    # All processes compute together, or none does: the cache of one host may have what another's lacks.
    if np.all(multihost_utils.process_allgather(np.array(known is not None))) and known is not None:
        return known
    result = compute()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path) as file:
            np.savez(file, features=result)
    return result
