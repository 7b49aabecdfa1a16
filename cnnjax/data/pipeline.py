"""From a source to batches: the batch at step s is a pure function of (seed, s).

Sources in memory are indexed; others go through Grain, which reads, decodes and prefetches with threads (or worker
processes). Both draw their order from ``order``, so a set that is moved from disk to memory trains the same run.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np
from absl import flags

from cnnjax import sharding
from cnnjax.data.host import Transform
from cnnjax.data.sources import Arrays, Source
from cnnjax.types import Batch, UserError

RandomTransform = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Full batches in one pass; the rest of a permutation is left out, another rest each epoch.

    Raises:
      UserError: there are fewer examples than one batch, or the batch is empty.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    if examples < batch_size:
        raise UserError(f"batch size {batch_size} is larger than the training set of {examples} images")
    return examples // batch_size


def order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of ``examples`` that epoch ``epoch`` visits; ``seed`` is not negative."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


class _Positions:
    """Step → the indices of this process's rows of its batch; keeps the permutation of one epoch."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.per_epoch = steps_per_epoch(examples, batch_size)
        self.rows = sharding.local_rows(batch_size)  # here: a worker process does not know which host it is on
        self.latest = (-1, np.empty(0, np.int64))

    def __call__(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.per_epoch)
        known, permutation = self.latest  # one tuple, so that threads never see half a change
        if known != epoch:
            permutation = order(self.examples, self.seed, epoch)
            self.latest = (epoch, permutation)
        rows = permutation[index * self.batch_size : (index + 1) * self.batch_size]
        return rows[self.rows]


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    start: int = 0,
    *,
    transform: Transform | None = None,
    random: RandomTransform | None = None,
    threads: int = 8,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches from step ``start`` on.

    Args:
      batch_size: images in the global batch; this process gets its share of the rows.
      transform: host transform of one image; not used for ``Arrays``, which have it behind them.
      random: in its place, a host transform that draws; each image of each step has a generator of its own.
      threads: that read and decode, in each worker.
      workers: processes beside this one; 0 keeps everything in threads.

    Raises:
      UserError: at once for a batch larger than the source or a negative number; later, from the iterator, for images
        that cannot be read or differ in shape.
    """
    numbers = {"seed": seed, "start": start, "threads": threads, "workers": workers}
    if negative := [f"{name} {value}" for name, value in numbers.items() if value < 0]:
        raise UserError(f"{', '.join(negative)}: must not be negative")
    positions = _Positions(len(source), batch_size, seed)
    if isinstance(source, Arrays) and random is None:
        return array_batches({"image": source.images, "label": source.labels}, batch_size, seed, start)

    def load(step: int) -> dict[str, np.ndarray]:
        return _load(source, positions(step), transform if random is None else _drawing(random, seed, step, positions))

    return _read(grain.MapDataset.range(start, start + 2**40).map(lambda step: load(int(step))), threads, workers)


def array_batches(arrays: Mapping[str, np.ndarray], batch_size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Endless batches from step ``start`` on of arrays that have the same length, in the order of ``train_batches``."""
    positions = _Positions(len(next(iter(arrays.values()))), batch_size, seed)
    rows = map(positions, itertools.count(start))
    return ({name: array[chosen] for name, array in arrays.items()} for chosen in rows)


def _drawing(random: RandomTransform, seed: int, step: int, positions: _Positions) -> Transform:
    """``random`` with a generator for each row of the global batch, to be called row by row."""
    rows = iter(range(positions.rows.start, positions.rows.stop))
    return lambda image: random(np.random.default_rng([seed, step, next(rows)]), image)


def _load(source: Source, indices: np.ndarray, transform: Transform | None) -> dict[str, np.ndarray]:
    examples = [source[int(index)] for index in indices]
    images = [example["image"] if transform is None else transform(example["image"]) for example in examples]
    if len(shapes := {image.shape for image in images}) > 1:
        raise UserError(f"images of different shapes, such as {sorted(shapes)[:3]}: give a size to bring them to")
    return {"image": np.stack(images), "label": np.array([example["label"] for example in examples], np.int32)}


def _read(data: grain.MapDataset, threads: int, workers: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    stream = data.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags and refuse unparsed ones
        stream = stream.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


def eval_batches(
    source: Source, batch_size: int, *, transform: Transform | None = None, threads: int = 8
) -> Iterator[Batch]:
    """Every example once, in order, this process's rows; the last batch is filled up, ``mask`` is 0 on the filling."""
    if isinstance(source, Arrays):
        return array_eval_batches({"image": source.images, "label": source.labels}, batch_size)
    rows, count = sharding.local_rows(batch_size), -(-len(source) // batch_size)

    def load(index: int) -> dict[str, np.ndarray]:
        chosen, mask = _chosen(index, batch_size, len(source), rows)
        return {**_load(source, chosen, transform), "mask": mask}

    return _read(grain.MapDataset.range(count).map(load), threads, 0)


def array_eval_batches(arrays: Mapping[str, np.ndarray], batch_size: int) -> Iterator[Batch]:
    """``eval_batches`` of arrays that have the same length."""
    size, rows = len(next(iter(arrays.values()))), sharding.local_rows(batch_size)

    def load(index: int) -> dict[str, np.ndarray]:
        chosen, mask = _chosen(index, batch_size, size, rows)
        return {**{name: array[chosen] for name, array in arrays.items()}, "mask": mask}

    return map(load, range(-(-size // batch_size)))


def _chosen(index: int, batch_size: int, size: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """The examples of this process's rows of a batch, and 1 where they are not the filling."""
    indices = np.arange(index * batch_size, (index + 1) * batch_size)[rows]
    return np.minimum(indices, size - 1), (indices < size).astype(np.float32)
