"""Targets from annotation files to padded batches: rows, what is said of them, truths; bad annotations all the way."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import annotations, catalog, pipeline, sources, targets, transforms, views
from cnnjax.metrics import detection
from cnnjax.types import UserError

SIZE = 64


def coco(root: Path, boxes: list[list[dict]]) -> sources.Source:
    """Source of a COCO file with the images 0.png, 1.png, … of 80×60 pixels and their objects."""
    for i in range(len(boxes)):
        Image.new("RGB", (80, 60), (i, 0, 0)).save(root / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(len(boxes))],
        "annotations": [
            {"id": 100 * i + k, "image_id": i, "category_id": 1, "bbox": [k, 1, 20, 30], **each}
            for i, several in enumerate(boxes)
            for k, each in enumerate(several)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return annotations.AnnotatedImages(annotations.open(root))


def counted(root: Path, *counts: int) -> sources.Source:
    return coco(root, [[{}] * count for count in counts])


def batch_of(source, *chain, **options):
    """First batch, of all images."""
    load = pipeline.loader(source, *chain)
    return next(pipeline.train_batches(source, len(source), 0, load=load, threads=0, **options))


# ---- rows ----


def test_rows_are_those_of_the_fullest_image_or_of_the_four_fullest(tmp_path, capsys):
    source = counted(tmp_path, 3, 0, 7, 2, 5, 1)
    pad = targets.padding({"train": source})
    assert capsys.readouterr().out == "train: 3.0 boxes in an image, at most 7 (2.png); room for 7\n"
    batch = batch_of(source, transforms.letterbox(SIZE), pad)
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "image": ((6, SIZE, SIZE, 3), "uint8"),
        "boxes": ((6, 7, 4), "float32"),
        "labels": ((6, 7), "int32"),
        **dict.fromkeys(("box_mask", "ignore", "crowd", "difficult"), ((6, 7), "bool")),
    }
    assert sorted(batch["box_mask"].sum(1)) == [0, 1, 2, 3, 5, 7]
    assert (np.sort(batch["box_mask"], 1)[:, ::-1] == batch["box_mask"]).all()  # real ones first
    pad = targets.padding({"train": source}, mosaic=True)
    assert capsys.readouterr().out.endswith("at most 7 (2.png); room for 17 in a mosaic of four\n")
    four = views.mosaic(SIZE, np.random.default_rng(0), [source[i] for i in (0, 2, 3, 4)], min_visible=0.0)
    assert pad(four)["boxes"].shape == (17, 4)
    few = targets.padding({"train": sources.Subset(source, np.array([0, 2]))}, mosaic=True)
    assert few(source[2])["boxes"].shape == (28, 4)  # one image may be taken four times


def test_parts_share_the_number_of_rows(tmp_path, capsys):
    source = counted(tmp_path, 3, 1, 7, 2)
    parts = {"valid": sources.Subset(source, np.array([0, 1])), "test": sources.Subset(source, np.array([2, 3]))}
    pad = targets.padding(parts)
    assert [line.split(";")[1] for line in capsys.readouterr().out.splitlines()] == [" room for 7"] * 2
    assert pad(source[1])["boxes"].shape == (7, 4)


def test_what_is_cut_is_said(tmp_path, capsys):
    source = counted(tmp_path, 3, 0, 7, 2, 5, 1)
    pad = targets.padding({"train": source}, 4)
    assert capsys.readouterr().out.endswith("room for 4: 2 images lose 4 of 18 boxes; the smallest are cut\n")
    batch = batch_of(source, transforms.squeeze(SIZE), pad)
    assert sorted(batch["box_mask"].sum(1)) == [0, 1, 2, 3, 4, 4]
    targets.padding({"train": source}, 4, mosaic=True)
    says = "room for 4 in a mosaic of four: 2 images lose 4 of 18 boxes, mosaics may have 17; the smallest are cut\n"
    assert capsys.readouterr().out.endswith(says)
    targets.padding({"train": source}, 9, mosaic=True)
    assert capsys.readouterr().out.endswith(
        "room for 9 in a mosaic of four: mosaics may have 17; the smallest are cut\n"
    )
    larger = {**source[2], "boxes": source[2]["boxes"] + np.float32([[0, 0, k % 4, 0] for k in range(7)])}
    np.testing.assert_array_equal(pad(larger)["boxes"], larger["boxes"][[1, 2, 3, 6]])
    with pytest.raises(UserError, match="an image has 7 boxes, room is for 4"):
        transforms.pad_boxes(source[2], 4)  # nobody has been told
    with pytest.raises(UserError, match="valid: none of its 1 images has a box"):
        targets.padding({"valid": sources.Subset(source, np.array([1]))})
    with pytest.raises(UserError, match="Arrays has no annotations of boxes"):
        targets.padding({"train": sources.Arrays({"image": np.zeros((2, 4, 4, 3), np.uint8)}, ("a",))})


def test_boxes_that_a_crop_hides_make_room_for_others(tmp_path):
    source = coco(tmp_path, [[{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 5, 10, 10]}, {"bbox": [60, 20, 15, 20]}]])
    right = transforms.crop((40, 0, 80, 60), SIZE, SIZE)
    new = transforms.pad_boxes(right(source[0]), 2)
    np.testing.assert_allclose(new["boxes"], [[16, 16 / 3, 32, 16], [32, 64 / 3, 56, 128 / 3]], rtol=1e-6)
    assert new["box_mask"].all()


def test_boxes_are_counted_by_class_without_reading_an_image(tmp_path):
    source = coco(tmp_path, [[{}, {"category_id": 2}], [], [{"category_id": 2}]])
    pad = targets.padding({"all": source})
    memory = sources.in_memory(sources.Mapped(source, transforms.chain(transforms.squeeze(SIZE), pad)))
    for each in (source, sources.Mapped(source, pad), memory):
        assert targets.class_counts(each).tolist() == [1, 2]
    assert targets.class_counts(sources.Subset(source, np.array([1, 2]))).tolist() == [0, 1]
    assert targets.class_counts(sources.Arrays({"image": np.zeros((2, 4, 4, 3), np.uint8)}, ("a",))) is None


# ---- truths ----


def test_truths_are_all_of_the_annotations_in_pixels_of_the_files(tmp_path):
    objects = [{"area": 77.5}, {"iscrowd": 1}, {"category_id": 2, "area": "no"}, {"area": 0}]
    source = coco(tmp_path, [[], objects])
    wrapped = sources.Mapped(sources.Subset(source, np.array([1])), transforms.letterbox(SIZE))
    (truth,) = targets.truths(wrapped)
    assert truth["boxes"].tolist() == [[k, 1, k + 20, 31] for k in range(4)]
    assert (truth["labels"].tolist(), truth["crowd"].tolist()) == ([0, 0, 1, 0], [False, True, False, False])
    assert (truth["area"].tolist(), truth["size"].tolist()) == ([77.5, 600, 600, 600], [60, 80])
    assert not truth["difficult"].any()
    flags = source[1]
    assert (flags["crowd"].tolist(), flags["ignore"].tolist()) == ([False, True, False, False],) * 2
    letterbox = transforms.letterbox(SIZE)
    found = letterbox.restore(wrapped[0]["boxes"], *truth["size"])
    predictions = [{"boxes": found, "labels": truth["labels"], "scores": np.linspace(1, 0.5, 4)}]
    figures = detection.coco_map([truth], predictions)
    assert figures["ap"] == pytest.approx(1)
    assert figures["ap_small"] == pytest.approx(1)


def test_areas_are_those_that_coco_says(shared):
    file = shared / "data/coco_mini/annotations/boxes_val2017.json"
    source = annotations.AnnotatedImages(annotations.open(file))
    truths = targets.truths(source)
    written = json.loads(file.read_text())["annotations"]
    assert sum(len(truth["boxes"]) for truth in truths) == 898 == len(written)
    assert sum(truth["area"].sum() for truth in truths) == pytest.approx(sum(each["area"] for each in written))


# ---- bad annotations, from the file to the batch ----

BAD = {
    "degenerate": {"bbox": [5, 5, 0, 9]},
    "outside": {"bbox": [90, 5, 9, 9]},
    "clipped": {"bbox": [70, 40, 30, 30]},
    "unknown class": {"category_id": 9},
    "unreadable": {"bbox": [1, 2, float("nan"), 4]},
    "duplicate": {"bbox": [1, 1, 20, 30]},
}


def test_bad_boxes_are_counted_and_the_others_reach_the_batch(tmp_path, capsys):
    coco(tmp_path, [[{}, {}, *BAD.values()], *[[{}]] * 9])
    (tmp_path / "7.png").unlink()
    (tmp_path / "8.png").write_bytes(b"no image")
    splits = catalog.load_boxes(str(tmp_path), fractions=catalog.Fractions(0.2, 0.2))
    said = capsys.readouterr().out
    assert f"{tmp_path}, all: 10 images, 6 faults in their labels: " in said
    assert all(f"1 × {kind}" in said for kind in BAD)
    whole = splits.train.source
    usable, errors = sources.readable(whole)
    assert [error.split(": ")[0] for error in errors] == [str(tmp_path / name) for name in ("7.png", "8.png")]
    pad = targets.padding({"train": usable})
    assert "1.2 boxes in an image, at most 3 (0.png); room for 3" in capsys.readouterr().out
    batch = batch_of(usable, views.random_view(SIZE, flip=0.0), pad)
    assert batch["box_mask"].sum() == 10
    fullest = batch["boxes"][batch["box_mask"].sum(1).argmax()]
    np.testing.assert_allclose(fullest[2], [56, 40 * 64 / 60, 64, 64], rtol=1e-6)
    with pytest.raises(UserError, match=r"[78]\.png: not a readable image"):
        batch_of(whole, transforms.squeeze(SIZE), pad)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("boxes.json", '{"images": [', r"boxes\.json: not JSON \("),
        ("boxes.json", '{"images": [], "annotations": [{}], "categories": []}', r"not COCO's JSON of objects \(no"),
        ("a.xml", "<annotation><object>", r"a\.xml: not an annotation of Pascal VOC \(no element"),
        ("labels/a.txt", "7 0.5 0.5 0.1 0.1", r"a\.txt, line 1: class 7, but .* names 1 classes"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, says):
    for folder in ("labels", "images"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "images" / "a.png")
    (tmp_path / name).write_text(content)
    if name.endswith("txt"):
        (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=says) as error:
        catalog.load_boxes(str(tmp_path), fractions=catalog.Fractions(0, 0.5))
    assert len(str(error.value).splitlines()) == 1


def test_a_hundred_thousand_boxes_in_one_image_take_seconds(tmp_path, capsys):
    count = 100_000
    corners = np.random.default_rng(0).uniform(0, (75, 55), (count, 2)).round(3)
    start = time.process_time()
    source = coco(tmp_path, [[{"bbox": [*corner, 4, 4]} for corner in corners.tolist()], *[[{}]] * 4])
    pad = targets.padding({"train": source})
    needed = len(source.annotations.records[0].boxes)
    assert needed > 0.99 * count  # some are listed twice
    says = f"at most {needed:,} (0.png); room for {needed:,}; --most-boxes takes fewer\n"
    assert capsys.readouterr().out.endswith(says)
    for view in (
        views.random_view(SIZE, views.jitter()),
        views.random_view(SIZE, views.zoom_out(), views.iou_crop(), centers=True),
        lambda rng, example: views.mosaic(SIZE, rng, [example, *(source[i] for i in (1, 2, 3))]),
    ):
        new = transforms.compose(view, pad)(np.random.default_rng(1), source[0])
        assert new["boxes"].shape == (needed, 4)
        assert 1 <= new["box_mask"].sum() <= needed
    cut = targets.padding({"train": source}, 50)
    assert f"1 images lose {needed - 50:,} of {needed + 4:,} boxes" in capsys.readouterr().out
    assert batch_of(source, transforms.squeeze(SIZE), cut)["box_mask"].sum() == 54
    assert time.process_time() - start < 30
