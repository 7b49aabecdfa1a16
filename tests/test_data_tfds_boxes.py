"""Data sets with boxes that tensorflow-datasets prepared: small ones like voc and coco, without TensorFlow."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_files

from cnnjax.data import catalog, sources, targets, transforms
from cnnjax.data.formats import tfds_boxes
from cnnjax.metrics import detection
from cnnjax.types import UserError

WIDTH, HEIGHT = 80, 50


def png(number, size=(WIDTH, HEIGHT), orientation=1):
    """Image of one color, whose red is ``number``."""
    return tfds_files.png(np.full((*size[::-1], 3), (number, 0, 0)), orientation)


def each(x0, y0, x1, y1, label="dog", size=(WIDTH, HEIGHT), **flags):
    """Object with a box in pixels."""
    box = tfds.features.BBox(y0 / size[1], x0 / size[0], y1 / size[1], x1 / size[0])
    return {"bbox": box, "label": label, **flags}


def prepare(root: Path, name: str, flags: dict, splits: dict, config: str | None = None) -> None:
    """Prepares a data set; ``splits`` are lists of (image, objects)."""
    objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"]), **flags}
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(objects),
    }
    examples = {
        split: [
            {"image": image, "image/filename": f"{split}{i}.png", "objects": several}
            for i, (image, several) in enumerate(each)
        ]
        for split, each in splits.items()
    }
    tfds_files.prepare(root, name, features, examples, config)


def by_pixel(source):
    """Examples by the number that is painted in their images."""
    return {int(source[i]["image"][0, 0, 0]): source[i] for i in range(len(source))}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    flags = {"is_difficult": np.bool_, "is_truncated": np.bool_}
    easy, hard = {"is_difficult": False, "is_truncated": True}, {"is_difficult": True, "is_truncated": False}
    train = [
        (png(1), [each(1, 1, 40, 20, **easy), each(11, 21, 80, 50, "cat", **hard)]),
        (png(2), []),
        (png(3), [each(5, 6, 5, 9, **easy), each(2, 3, 30, 30, "cat", **easy), each(2, 3, 30, 30, "cat", **easy)]),
        (png(4, (30, 60), 6), [each(4, 6, 15, 60, size=(30, 60), **easy)]),
    ]
    one = [each(10, 10, 50, 40, **easy)]
    prepare(root, "voc", flags, {"train": train, "validation": [(png(5), one)], "test": [(png(6), one)]}, "2007")
    return root


def test_voc_2007(voc, capsys):
    splits = catalog.load_boxes("voc/2007", voc)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "voc/2007: train = train; valid = validation; test = test"
    assert said[-3] == "voc/2007, valid: 1 images, 0 faults in their labels"
    assert said[-4].startswith("voc/2007, train: 4 images, 3 faults in their labels: ")
    assert all(f"1 × {kind}" in said[-4] for kind in ("no objects", "degenerate", "duplicate"))
    assert splits.train.classes == ("cat", "dog")
    examples = by_pixel(splits.train)
    # Pixels are counted from 1 and the last is included: (1, 1, 40, 20) are the first 40 columns and 20 rows.
    assert examples[1]["boxes"].tolist() == [[0, 0, 40, 20], [10, 20, 80, 50]]
    assert (examples[1]["labels"].tolist(), examples[1]["image"].shape) == ([1, 0], (HEIGHT, WIDTH, 3))
    assert {name: examples[1][name].tolist() for name in ("difficult", "crowd", "ignore")} == {
        "difficult": [False, True],
        "crowd": [False, False],
        "ignore": [False, True],
    }
    assert examples[2]["boxes"].shape == (0, 4)
    assert examples[3]["boxes"].tolist() == [[1, 2, 30, 30]]
    assert (examples[4]["image"].shape, examples[4]["boxes"].tolist()) == ((60, 30, 3), [[3, 5, 15, 60]])
    pad = targets.padding({"train": splits.train})
    assert "train: 1.0 boxes in an image, at most 2 (train0.png); room for 2" in capsys.readouterr().out
    stacked = sources.stack([pad(transforms.letterbox(64)(example)) for example in examples.values()])
    assert stacked["boxes"].shape == (4, 2, 4)
    truths = targets.truths(splits.train)
    found = [{**truth, "scores": np.ones(len(truth["boxes"]))} for truth in truths]
    assert detection.voc_ap(truths, found) == {0: pytest.approx(1), 1: pytest.approx(1)}


def test_splits_may_be_chosen(voc):
    splits = catalog.load_boxes("voc/2007", voc, {"train": "train[:50%]", "valid": "train[50%:]"})
    assert [len(source) for source in splits.given.values()] == [2, 2, 1]
    splits = catalog.load_boxes("voc/2007", voc, fractions=catalog.Fractions(0.25, 0.5))
    assert [len(source) for source in splits.given.values()] == [4, 1, 1]
    with pytest.raises(UserError, match=r"voc/2007 is a tfds data set: .* leave out --split night"):
        catalog.load_boxes("voc/2007", voc, split="night")


def test_coco_2017_has_no_boxes_for_its_test_split(tmp_path):
    flags = {"is_crowd": np.bool_, "area": np.int64}
    objects = [
        each(12.34, 5.67, 30.01, 20.5, is_crowd=False, area=77),
        each(0, 0, 80, 50, "cat", is_crowd=True, area=3000),
    ]
    parts = {"train": [(png(i), objects) for i in (1, 4)], "validation": [(png(2), objects)], "test": [(png(3), [])]}
    prepare(tmp_path, "coco", flags, parts, "2017")
    splits = catalog.load_boxes("coco/2017", tmp_path)
    assert splits.test is None
    assert [len(source) for source in splits.given.values()] == [2, 1]
    example = splits.valid[0]
    np.testing.assert_array_equal(example["boxes"], np.array([[12.34, 5.67, 30.01, 20.5], [0, 0, 80, 50]], np.float32))
    assert (example["crowd"].tolist(), example["ignore"].tolist()) == ([False, True], [False, True])
    assert targets.truths(splits.valid)[0]["area"].tolist() == [77, 3000]
    with pytest.raises(UserError, match=r"coco/2017, split 'test': none of its 1 images has a box: choose"):
        catalog.load_boxes("coco/2017", tmp_path, {"test": "test"})


def test_what_is_not_there_or_has_no_boxes_is_named(tmp_path, shared):
    with pytest.raises(UserError, match=r"coco/2017 is not prepared in .*: run `python -m cnnjax\.data\.prepare"):
        catalog.load_boxes("coco/2017", tmp_path)
    with pytest.raises(UserError, match="mnist has no uint8 image and objects, each with bbox and label: it has"):
        catalog.load_boxes("mnist", shared / "data/tfds")
    with pytest.raises(UserError, match=r"unknown data set 'cocoo'.*did you mean coco"):
        catalog.load_boxes("cocoo", tmp_path)
    with pytest.raises(UserError, match="no/such/folder: no such file or folder"):
        catalog.load_boxes("no/such/folder", tmp_path)
    with pytest.raises(UserError, match="fixed splits"):
        catalog.load_boxes(str(shared / "data/bccd"), splits={"train": "train[:5]"})


def test_a_damaged_picture_is_left_out_and_named(tmp_path):
    one = [each(1, 1, 40, 20)]
    parts = {"train": [(png(1), one), (io.BytesIO(b"no image"), one)], "validation": [(png(3), one)]}
    prepare(tmp_path, "voc", {}, parts, "2007")
    read, stored = tfds_boxes.read("voc/2007", "train", tmp_path)
    assert (len(read.images), len(stored)) == (1, 2)
    (fault,) = read.faults
    assert (fault.kind, fault.file.name) == ("unreadable picture", "train1.png")
    splits = catalog.load_boxes("voc/2007", tmp_path, fractions=catalog.Fractions(0, None))
    assert [source[0]["boxes"].tolist() for source in splits.given.values()] == [[[0, 0, 40, 20]]] * 2


def test_a_folder_with_the_name_of_a_data_set_is_taken_and_said(shared, tmp_path, monkeypatch, capsys):
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "2007").symlink_to(shared / "data/bccd")
    monkeypatch.chdir(tmp_path)
    assert len(catalog.load_boxes("voc/2007").train) == 205
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "voc/2007 is taken for what lies here, not for the tfds data set of this name"
    assert len(catalog.load_boxes("./voc/2007").train) == 205
    assert "is taken" not in capsys.readouterr().out


def test_a_folder_is_load_annotated_s(shared, capsys):
    splits = catalog.load_boxes(str(shared / "data/bccd"))
    assert [len(source) for source in splits.given.values()] == [205, 87, 72]
    assert "train: 205 images, 1 faults in their labels" in capsys.readouterr().out
