"""Batches from a source: the batch at step s is a pure function of (seed, s).

Sources in memory are indexed; others go through Grain, which reads, decodes and prefetches example by example with
threads (or worker processes). Both draw their order from ``order``, so moving a data set from disk to memory
does not change a run.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from cnnjax import sharding
from cnnjax.data import transforms
from cnnjax.data.sources import Arrays, Source, stack
from cnnjax.types import Example, UserError

Load = Callable[..., Example]
"""(generator, index) → example; it may combine several images, and takes ``size=`` where ``size_at`` is given."""


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Number of full batches in one pass; the remainder of a permutation is left out; it differs in each epoch.

    Raises:
      UserError: there are fewer examples than one batch, or the batch is empty.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    if examples < batch_size:
        raise UserError(f"batch size {batch_size} is larger than the training set of {examples} images")
    return examples // batch_size


def order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of ``examples`` in which epoch ``epoch`` visits them; ``seed`` is not negative."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


@functools.lru_cache(maxsize=2)  # threads work on the end of one epoch and the start of the next
def _order(examples: int, seed: int, epoch: int) -> np.ndarray:
    return order(examples, seed, epoch)


def loader(source: Source, *chain: transforms.Transform | transforms.RandomTransform) -> Load:
    """Loader of ``source[index]``, changed by the transforms in order; random ones use the example's generator."""
    transform = transforms.compose(*chain)
    return lambda rng, index: transform(rng, source[index])


def multi_scale(seed: int, sizes: Sequence[int] = range(320, 609, 32), every: int = 10) -> Callable[[int], int]:
    """Step → one of ``sizes``, drawn anew every ``every`` steps from (seed, step) alone, for ``size_at``.

    YOLOv2's multi-scale training (Redmon and Farhadi 2017, section 2): "every 10 batches our network randomly chooses
    a new image dimension size" among 320, 352, …, 608.
    """
    choices = tuple(sizes)

    def size_at(step: int) -> int:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step // every,)))
        return int(choices[rng.integers(len(choices))])

    return size_at


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    start: int = 0,
    *,
    load: Load | None = None,
    size_at: Callable[[int], int] | None = None,
    threads: int = 8,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end from step ``start`` on, every field of the examples stacked.

    Args:
      source: gives the number of examples, and without ``load`` the examples.
      batch_size: examples in the global batch; this process gets its share of the rows.
      load: makes the example at an index of ``source``; each row of each step has a generator of its own.
      size_at: step → image size, the argument ``size`` of ``load``.
      threads: number of threads that read and decode, in each worker.
      workers: number of processes beside this one; 0: only threads.

    Raises:
      UserError: at once for a batch larger than the source or a negative number; later, from the iterator, for images
        that cannot be read and fields that differ in shape.
    """
    numbers = {"seed": seed, "start": start, "threads": threads, "workers": workers}
    if negative := [f"{name} {value}" for name, value in numbers.items() if value < 0]:
        raise UserError(f"{', '.join(negative)}: must not be negative")
    if size_at is not None and load is None:
        raise ValueError("size_at: without load nothing takes the size")
    examples, per_epoch = len(source), steps_per_epoch(len(source), batch_size)
    rows = sharding.local_rows(batch_size)  # computed here: a worker process does not know on which host it is

    def indices(step: int) -> np.ndarray:
        epoch, batch = divmod(step, per_epoch)
        return _order(examples, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]

    if isinstance(source, Arrays) and load is None:
        return (source[indices(step)[rows]] for step in itertools.count(start))

    def example(step: int, row: int) -> Example:
        index = int(indices(step)[row])
        if load is None:
            return source[index]
        size = {} if size_at is None else {"size": size_at(step)}
        return load(np.random.default_rng([seed, step, row]), index, **size)

    return _read(example, range(start, start + 2**40), rows, threads, workers)


def in_turn(
    parts: Sequence[tuple[int, Callable[[int], Iterator[dict[str, np.ndarray]]]]], start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one part after the other, from step ``start`` on.

    Args:
      parts: for each part the number of its steps, and the function step (counted from the first part) → its batches
        from there on.
    """
    end = 0
    for steps, batches in parts:
        end += steps
        if start < end:
            yield from itertools.islice(batches(start), end - start)
            start = end


def eval_batches(source: Source, batch_size: int, *, threads: int = 8) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, this process's rows of each batch; the last batch is filled up.

    ``example_mask``, float32 [n], is 0 on the rows that only fill it up.
    """
    rows, batches, last = sharding.local_rows(batch_size), range(-(-len(source) // batch_size)), len(source) - 1
    if isinstance(source, Arrays):
        chosen = (np.arange(batch * batch_size, (batch + 1) * batch_size)[rows] for batch in batches)
        return ({**source[np.minimum(i, last)], "example_mask": (i <= last).astype(np.float32)} for i in chosen)

    def example(batch: int, row: int) -> Example:
        index = batch * batch_size + row
        return {**source[min(index, last)], "example_mask": np.float32(index <= last)}

    return _read(example, batches, rows, threads, 0)


def _read(
    example: Callable[[int, int], Example], batches: range, rows: slice, threads: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of ``example(batch, row)``, read in parts that are small enough to keep all threads busy."""
    size = -(-(rows.stop - rows.start) // (2 * max(threads, 1)))
    firsts = range(rows.start, rows.stop, size)

    def part(position: int) -> list[Example]:
        batch, number = divmod(int(position), len(firsts))
        return [example(batch, row) for row in range(firsts[number], min(firsts[number] + size, rows.stop))]

    # Two batches may wait while one trains.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * len(firsts), threads))
    positions = grain.MapDataset.range(batches.start * len(firsts), batches.stop * len(firsts))
    stream = positions.map(part).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags and refuse unparsed ones
        stream = stream.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
    return iter(stream.batch(len(firsts), batch_fn=lambda parts: stack([each for part in parts for each in part])))
