"""The batch at step s is a pure function of (seed, s): indexed, by threads, by worker processes, on every host."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import sharding
from cnnjax.data import pipeline, sources, transforms
from cnnjax.data.formats.images import CorruptImageError
from cnnjax.types import Batch, UserError

N, SIZE = 22, 4


@dataclass(frozen=True)
class Numbered:
    """Source whose image i is filled with i and labelled i; not `Arrays`, so that Grain reads it."""

    examples: int = N
    classes: tuple[str, ...] = tuple(map(str, range(256)))
    corrupt: tuple[int, ...] = ()
    odd: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict:
        if index in self.corrupt:
            raise CorruptImageError(f"{index}.jpg: not a readable image")
        return {"image": np.full((SIZE + (index in self.odd), SIZE, 3), index, np.uint8), "label": index}


def arrays(examples: int = N) -> sources.Arrays:
    return sources.in_memory(Numbered(examples))


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    taken = list(itertools.islice(batches, count))
    assert len(taken) == count
    return taken


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    chex.assert_trees_all_equal(first, second, strict=True)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 13, 5000])
def test_starting_at_a_step_is_skipping_to_it(start):
    batches = take(pipeline.train_batches(arrays(), 4, seed=3), 20)
    again = take(pipeline.train_batches(arrays(), 4, seed=3, start=start), 3)
    assert_same(again, batches[start : start + 3] if start < 20 else take(from_order(4, 3, start), 3))


def from_order(batch_size: int, seed: int, step: int) -> Iterator[Batch]:
    """Batches from ``order`` alone, from step ``step`` on."""
    whole = arrays()
    while True:
        epoch, index = divmod(step, N // batch_size)
        yield whole[pipeline.order(N, seed, epoch)[index * batch_size : (index + 1) * batch_size]]
        step += 1


@pytest.mark.parametrize("threads", [0, 1, 8])
@pytest.mark.parametrize("start", [0, 4, 7])
def test_threads_give_the_batches_of_memory(threads, start):
    read = take(pipeline.train_batches(Numbered(), 4, seed=3, start=start, threads=threads), 12)
    assert_same(read, take(pipeline.train_batches(arrays(), 4, seed=3, start=start), 12))


WORKERS = """
import itertools, sys
import chex
from pathlib import Path
from cnnjax.data import pipeline, sources, transforms
from cnnjax.data.formats.folders import Folder

def main():
    folder, start = Folder.open(Path(sys.argv[1])), int(sys.argv[2])
    small = sources.Mapped(folder, transforms.squeeze(4))
    flip = transforms.random_flip_left_right()
    read = pipeline.train_batches(
        folder, 4, 3, start, load=pipeline.loader(folder, transforms.squeeze(4), flip), threads=2, workers=2
    )
    memory = pipeline.train_batches(folder, 4, 3, start, load=pipeline.loader(sources.in_memory(small), flip))
    for pair in itertools.islice(zip(read, memory), 9):
        chex.assert_trees_all_equal(*pair)
    print("same")

if __name__ == "__main__":
    main()
"""


def test_worker_processes_give_the_batches_of_memory(tmp_path: Path):
    for index in range(N):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5 + index % 3, 6, 3), index, np.uint8)).save(path)
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    command = [sys.executable, str(script), str(tmp_path / "images"), "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "same\n", result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 22])
def test_an_epoch_visits_every_example_at_most_once_and_epochs_differ(batch_size):
    steps = pipeline.steps_per_epoch(N, batch_size)
    stream = pipeline.train_batches(arrays(), batch_size, seed=0)
    epochs = [np.concatenate([batch["label"] for batch in take(stream, steps)]) for _ in range(40)]
    for seen in epochs:
        assert len(seen) == len(set(seen)) == N // batch_size * batch_size
    assert len({tuple(seen) for seen in epochs}) == 40
    assert set(np.concatenate(epochs)) == set(range(N))  # other epochs have the examples that one leaves out


def test_order_depends_on_the_seed_only():
    first, again, other = (take(pipeline.train_batches(arrays(), 4, seed), 5) for seed in (1, 1, 2))
    assert_same(first, again)
    assert any((one["label"] != two["label"]).any() for one, two in zip(first, other, strict=True))
    assert pipeline.order(N, 1, 0).tolist() != pipeline.order(N, 0, 1).tolist()


@pytest.mark.parametrize("make", [arrays, Numbered])
@pytest.mark.parametrize("batch_size", [*range(1, 12), 21, 22, 23, 50])
def test_eval_batches_count_everything_once(make, batch_size):
    batches = list(pipeline.eval_batches(make(), batch_size))
    assert len(batches) == -(-N // batch_size)
    assert all(batch["image"].shape == (batch_size, SIZE, SIZE, 3) for batch in batches)
    assert all(batch["example_mask"].dtype == np.float32 for batch in batches)
    mask = np.concatenate([batch["example_mask"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    assert (mask * labels).sum() == sum(range(N))
    assert mask.sum() == N
    assert labels[mask > 0].tolist() == list(range(N))
    assert images[mask > 0][:, 0, 0, 0].tolist() == list(range(N))


@pytest.mark.parametrize("make", [arrays, Numbered])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_rows_of_the_hosts_make_the_global_batch(make, hosts, monkeypatch):
    want_train = take(pipeline.train_batches(make(), 8, seed=0, start=1), 4)
    want_eval = list(pipeline.eval_batches(make(), 8))
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    train, evaluation = [], []
    for index in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        train.append(take(pipeline.train_batches(make(), 8, seed=0, start=1), 4))
        evaluation.append(list(pipeline.eval_batches(make(), 8)))
    for want, parts in ((want_train, train), (want_eval, evaluation)):
        assert all(len(batch["label"]) == 8 // hosts for part in parts for batch in part)
        together = [{name: np.concatenate([p[i][name] for p in parts]) for name in want[i]} for i in range(len(want))]
        assert_same(together, want)


def test_the_host_is_asked_for_once_so_that_workers_need_not_know_it(monkeypatch):
    # A worker process of Grain has no jax.distributed: there process_count() would be 1.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = pipeline.train_batches(arrays(), 8, seed=0)
    monkeypatch.undo()
    assert len(next(stream)["label"]) == 4


@pytest.mark.parametrize("make", [arrays, Numbered])
def test_errors_come_at_once(make):
    with pytest.raises(UserError, match="batch size 23 is larger than the training set of 22 images"):
        pipeline.train_batches(make(), 23, seed=0)
    with pytest.raises(UserError, match="batch size 0: must be at least 1"):
        pipeline.train_batches(make(), 0, seed=0)
    with pytest.raises(UserError, match="seed -1, workers -2: must not be negative"):
        pipeline.train_batches(make(), 4, seed=-1, workers=-2)
    with pytest.raises(UserError, match="threads -1: must not be negative"):
        pipeline.train_batches(make(), 4, seed=0, threads=-1)


def test_bad_images_are_named_from_the_threads():
    with pytest.raises(CorruptImageError, match=r"7\.jpg: not a readable image"):
        take(pipeline.train_batches(Numbered(corrupt=(7,)), 11, seed=0), 2)
    with pytest.raises(CorruptImageError, match=r"21\.jpg"):
        list(pipeline.eval_batches(Numbered(corrupt=(21,)), 4))
    with pytest.raises(UserError, match=r"different shapes, such as \[\(4, 4, 3\), \(5, 4, 3\)\]: give a size"):
        take(pipeline.train_batches(Numbered(odd=(7,)), 11, seed=0), 2)


def test_transform_fixes_the_shape():
    squeezed = sources.Mapped(Numbered(odd=(1, 2, 3)), transforms.squeeze(3))
    batch = next(pipeline.train_batches(squeezed, 22, seed=0))
    assert batch["image"].shape == (22, 3, 3, 3)
    cropped = sources.Mapped(Numbered(odd=(1, 2, 3)), transforms.center_crop(4))
    batch = next(pipeline.eval_batches(cropped, 30))
    assert batch["image"].shape == (30, 4, 4, 3)


# ---- loaders ----


@dataclass(frozen=True)
class Everything(Numbered):
    """Source with every field of the contract, and one of its own."""

    def __getitem__(self, index: int) -> dict:
        boxes = np.array([[0, 0, index % 4 + 1, 3], [0, 0, 0, 0]], np.float32)
        return {
            **super().__getitem__(index),
            "boxes": boxes,
            "labels": np.array([index, 0], np.int32),
            "box_mask": np.array([True, False]),
            "segmentation": np.full((SIZE, SIZE), index, np.int32),
            "instance_masks": np.full((2, SIZE, SIZE), index % 2, bool),
            "weight": index / 2,
        }


def mosaic(source: sources.Source):
    """Loader that reads four images: the requested one and three that are drawn."""

    def load(rng: np.random.Generator, index: int) -> dict:
        others = rng.integers(len(source), size=3)
        top, low = ([source[int(i)]["image"] for i in pair] for pair in ((index, others[0]), others[1:]))
        return {"image": np.vstack([np.hstack(top), np.hstack(low)]), "label": index, "others": others}

    return load


def test_every_field_is_stacked_and_memory_gives_the_same():
    read = take(pipeline.train_batches(Everything(), 4, seed=3), 6)
    assert_same(read, take(pipeline.train_batches(sources.in_memory(Everything()), 4, seed=3), 6))
    shapes = {name: (values.shape, values.dtype) for name, values in read[0].items()}
    assert shapes["boxes"] == ((4, 2, 4), np.float32)
    assert shapes["segmentation"] == ((4, SIZE, SIZE), np.int32)
    assert shapes["instance_masks"] == ((4, 2, SIZE, SIZE), bool)
    for batch in read:
        np.testing.assert_array_equal(batch["labels"][:, 0], batch["label"])
        np.testing.assert_array_equal(batch["segmentation"][:, 0, 0], batch["label"])
        np.testing.assert_array_equal(batch["weight"], batch["label"] / 2)
    evaluated = list(pipeline.eval_batches(Everything(), 5))
    assert_same(evaluated, list(pipeline.eval_batches(sources.in_memory(Everything()), 5)))
    assert evaluated[-1].keys() == {*read[0], "example_mask"}


@pytest.mark.parametrize("make", [arrays, Numbered])
@pytest.mark.parametrize("threads", [0, 1, 3, 8])
@pytest.mark.parametrize("start", [0, 4])
def test_a_loader_draws_by_seed_step_and_row_alone(make, threads, start):
    batches = take(pipeline.train_batches(make(), 5, 3, start, load=mosaic(make()), threads=threads), 6)
    for step, batch in enumerate(batches, start):
        epoch, index = divmod(step, N // 5)
        chosen = pipeline.order(N, 3, epoch)[index * 5 : (index + 1) * 5]
        for row in range(5):
            drawn = np.random.default_rng([3, step, row]).integers(N, size=3)
            assert batch["others"][row].tolist() == drawn.tolist()
            corners = batch["image"][row][:: 2 * SIZE - 1, :: 2 * SIZE - 1, 0].ravel()
            assert corners.tolist() == [chosen[row], *drawn]
        assert batch["label"].dtype == np.int32


def sized(rng: np.random.Generator, index: int, size: int) -> dict:
    return {"image": rng.integers(0, 256, (size, size, 3), np.uint8), "label": index}


def test_the_size_may_change_by_step():
    sizes = (lambda step: 8 if step < 3 else 16), (lambda step: 8 + 4 * (step % 3))
    for size_at in sizes:
        batches = take(pipeline.train_batches(arrays(), 4, 0, 1, load=sized, size_at=size_at), 5)
        assert [batch["image"].shape[1] for batch in batches] == [size_at(step) for step in range(1, 6)]
    with pytest.raises(ValueError, match="size_at"):
        pipeline.train_batches(arrays(), 4, 0, size_at=sizes[0])


def test_multi_scale_draws_a_size_every_ten_steps_from_seed_and_step_alone():
    size_at = pipeline.multi_scale(3)
    sizes = [size_at(step) for step in range(4000)]
    assert set(sizes) == set(range(320, 609, 32))
    tens = [set(sizes[start : start + 10]) for start in range(0, 4000, 10)]
    assert all(len(ten) == 1 for ten in tens)
    drawn = np.bincount([(min(ten) - 320) // 32 for ten in tens])
    assert 20 <= drawn.min() <= drawn.max() <= 65  # of 40 expected
    assert [pipeline.multi_scale(3)(step) for step in (3999, 17, 0)] == [sizes[3999], sizes[17], sizes[0]]
    assert [pipeline.multi_scale(4)(step) for step in range(4000)] != sizes
    few = pipeline.multi_scale(0, (8, 16), every=3)
    assert {few(step) for step in range(60)} == {8, 16}
    assert all(few(step) == few(step - step % 3) for step in range(60))


@pytest.mark.parametrize("load", [mosaic(Numbered()), sized])
def test_rows_of_two_hosts_draw_what_one_draws(load, monkeypatch):
    options = {"load": load, "size_at": None if load is not sized else lambda step: 4 + step}
    want = take(pipeline.train_batches(Numbered(), 6, 0, **options), 4)
    parts = []
    for index in range(2):
        monkeypatch.setattr(sharding, "local_rows", lambda size, i=index: slice(i * size // 2, (i + 1) * size // 2))
        parts.append(take(pipeline.train_batches(Numbered(), 6, 0, **options), 4))
    together = [
        {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
        for halves in zip(*parts, strict=True)
    ]
    assert_same(together, want)


def test_loader_applies_transforms_in_turn():
    source = Everything()
    load = pipeline.loader(
        source, transforms.random_resized_crop(6), transforms.random_flip_left_right(), transforms.pad(7, 8)
    )
    (batch,) = take(pipeline.train_batches(source, 3, 5, 2, load=load), 1)
    assert batch["image"].shape == (3, 7, 8, 3)
    assert batch["segmentation"].shape == (3, 7, 8)
    generator, index = np.random.default_rng([5, 2, 1]), int(pipeline.order(N, 5, 0)[7])
    by_hand = transforms.random_resized_crop(6)(generator, source[index])
    by_hand = transforms.pad(7, 8)(transforms.random_flip_left_right()(generator, by_hand))
    chex.assert_trees_all_equal({name: values[1] for name, values in batch.items()}, dict(by_hand))


def test_fields_that_cannot_be_stacked_are_named():
    def ragged(rng: np.random.Generator, index: int) -> dict:
        return {"image": np.zeros((4, 4, 3), np.uint8), "boxes": np.zeros((index % 3, 4), np.float32)}

    def other(rng: np.random.Generator, index: int) -> dict:
        return {"image": np.zeros((4, 4, 3), np.uint8), **({"label": 0} if index else {})}

    with pytest.raises(
        UserError, match=r"field 'boxes' has different shapes, such as \[\(0, 4\), \(1, 4\).*: pad them"
    ):
        take(pipeline.train_batches(Numbered(), 22, 0, load=ragged), 1)
    with pytest.raises(UserError, match="examples with different fields"):
        take(pipeline.train_batches(Numbered(), 22, 0, load=other), 1)
