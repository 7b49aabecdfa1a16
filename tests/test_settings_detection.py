"""Settings of a detector's images: fields and shapes of its batches, which are the same from any step on."""

import itertools
from dataclasses import dataclass
from functools import partial

import chex
import cloudpickle
import jax
import numpy as np
import pytest

from cnnjax import settings
from cnnjax.data import annotations, augment, sources
from cnnjax.types import UserError

OPTIONS = {"mosaic": 0.5, "scales": (64, 128)}


@pytest.fixture(scope="module")
def bccd(shared):
    whole = annotations.AnnotatedImages(annotations.open(shared / "data/bccd", "train"))
    return sources.Subset(whole, np.arange(8))


@dataclass(frozen=True)
class Counted(sources.Subset):
    """Subset that lists the images which it is asked for."""

    asked: list

    def __getitem__(self, index):
        self.asked[-1].append(index)
        return super().__getitem__(index)


def batches(source, start=0, count=3, threads=2, **options):
    images = settings.DetectionImages(**options)
    read = images.batches(settings.Reading(threads=threads), source, 4, 7, 96, "letterbox")
    return list(itertools.islice(read(start), count))


def test_batches_have_the_fields_of_a_detector(bccd, capsys):
    most = sum(sorted(len(record.boxes) for record in bccd.source.annotations.records[:8])[-4:])
    for batch in batches(bccd, mosaic=1.0):
        assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
            "image": ((4, 96, 96, 3), "uint8"),
            "boxes": ((4, most, 4), "float32"),
            "labels": ((4, most), "int32"),
            **dict.fromkeys(("box_mask", "ignore", "crowd", "difficult"), ((4, most), "bool")),
        }
        boxes = batch["boxes"][batch["box_mask"]]
        assert len(boxes) > 40
        assert (boxes >= 0).all()
        assert (boxes <= 96).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert not batch["boxes"][~batch["box_mask"]].any()
    assert f"room for {most} in a mosaic of four" in capsys.readouterr().out


def test_a_run_that_was_killed_gets_the_batches_it_would_have_had(bccd):
    whole = batches(bccd, 0, 14, **OPTIONS)
    sizes = [batch["image"].shape[1] for batch in whole]
    assert set(sizes[:10]) == {sizes[0]} != {sizes[10]} == set(sizes[10:])
    assert set(sizes) <= {64, 96, 128}
    for start, threads in ((1, 0), (9, 3), (12, 8)):
        chex.assert_trees_all_equal(batches(bccd, start, 2, threads, **OPTIONS), whole[start : start + 2])


def test_a_worker_process_makes_the_same_examples(bccd):
    """Grain sends the loader there by cloudpickle; test_data_pipeline starts such processes."""
    images = settings.DetectionImages(**OPTIONS)
    here = images.load(bccd, "squeeze"), images.size_at(7)
    there = cloudpickle.loads(cloudpickle.dumps(here))
    for step in range(8, 12):
        both = [load(np.random.default_rng(step), step % 8, size=size_at(step)) for load, size_at in (here, there)]
        chex.assert_trees_all_equal(*both)


def test_images_that_fit_are_decoded_once_and_the_batches_are_the_same(bccd):
    sizes = [3 * 480 * 640 * len(bccd) - 1, 3 * 480 * 640 * len(bccd)]
    reads = [settings.Reading(in_memory_bytes=size, threads=2) for size in sizes]
    images, decoded = settings.DetectionImages(mosaic=0.5), []
    counted = Counted(bccd.source, bccd.indices, decoded)
    for reading in reads:
        decoded.append([])
        read = images.batches(reading, counted, 4, 7, 96, "letterbox")
        chex.assert_trees_all_equal(list(itertools.islice(read(0), 4)), batches(bccd, count=4, mosaic=0.5))
    assert len(decoded[0]) > 16
    assert len(decoded[1]) <= 8 + 4  # two threads may decode one image at the same time


@pytest.mark.parametrize("view", ["jitter", "ssd", "whole"])
def test_views_differ_and_without_any_change_the_images_are_evaluation_s(bccd, view):
    (batch,) = batches(bccd, count=1, view=view, flip=0.0)
    (whole,) = batches(bccd, count=1, view="whole", flip=0.0)
    assert (batch["image"] == whole["image"]).all() == (view == "whole")
    kept = whole["box_mask"].sum()
    assert batch["box_mask"].sum() == kept if view == "whole" else 0 < batch["box_mask"].sum() <= kept


def test_rows_that_are_cut_are_said(bccd, capsys):
    (batch,) = batches(bccd, count=1, most_boxes=5)
    assert batch["boxes"].shape == (4, 5, 4)
    assert "room for 5: 8 images lose" in capsys.readouterr().out


@pytest.mark.parametrize("scales", [(608, 320), (320, 600), (100, 128)])
def test_scales_that_are_none_are_refused(bccd, scales):
    with pytest.raises(UserError, match=f"--scales {scales[0]} {scales[1]}: expected the smaller, then the larger"):
        batches(bccd, scales=scales)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"jitter": 0.5}, r"--jitter must be in 0 … 0\.5, 0\.5 excluded, got 0\.5"),
        ({"mosaic": 1.5}, r"--mosaic must be in 0 … 1, got 1\.5"),
        ({"saturation": 0.5}, r"--saturation must be 1 or more, got 0\.5"),
        ({"most_boxes": 0}, "--most-boxes must be above 0, got 0"),
        ({"scales": (0, 320)}, r"--scales must be in 1 … 8192, got 0"),
    ],
)
def test_ranges(values, says):
    with pytest.raises(UserError, match=says):
        settings.check(settings.DetectionImages(**values))


def test_colors_change_unless_all_are_off():
    image = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    for options, same in (({}, False), ({"hue": 0.0, "saturation": 1.0, "exposure": 1.0}, True)):
        op = settings.DetectionImages(**options).op()
        new = jax.jit(partial(augment.per_example, op))(jax.random.key(0), {"image": image})["image"]
        assert (np.asarray(new) == image).all() == same
