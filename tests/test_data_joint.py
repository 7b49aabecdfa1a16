"""data.joint: images with boxes beside images with a label only, their classes in a tree, and what reaches a batch."""

import json

import numpy as np
import pytest
from PIL import Image

from cnnjax import settings
from cnnjax.data import annotations, catalog, joint, sources, splits, targets
from cnnjax.types import UserError


@pytest.fixture
def tree(tmp_path):
    (path := tmp_path / "tree.json").write_text(json.dumps({"paint": ["green", {"warm": ["red"]}, "blue"]}))
    return path


@pytest.fixture
def green(tmp_path):
    """Class folder of three images of 20×30 pixels."""
    (folder := tmp_path / "more" / "green").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (30, 20), (0, 200, 0)).save(folder / f"{i}.png")
    return folder.parent


def labels_of(source):
    return [(record.image_label, *record.labels) for record in targets.records(source)]


def test_labels_become_nodes_and_some_boxes_are_withheld(rectangles, tree, green, capsys):
    found = catalog.load_boxes(str(rectangles))
    before = {part: labels_of(source) for part, source in found.given.items()}
    assert found.train.classes == ("blue", "red")
    capsys.readouterr()
    joined = joint.join(found, tree, green, ["blue"])
    blues = {part: sum(label == 0 for _, label in rows) for part, rows in before.items()}
    reds = {part: len(rows) - blues[part] for part, rows in before.items()}
    assert capsys.readouterr().out == (
        f"joint training: {reds['train']} images with boxes, {blues['train'] + 3} with a label only; "
        f"{blues['valid']} of valid left out\n"
    )
    assert joined.train.classes == joined.test.classes == ("paint", "green", "warm", "red", "blue")
    assert joint.parents(joined.train) == joint.parents(sources.Subset(joined.test, np.arange(2))) == (-1, 0, 0, 2, 0)
    train = labels_of(joined.train)
    assert train == [*((4,) if label == 0 else (-1, 3) for _, label in before["train"]), (1,), (1,), (1,)]
    assert labels_of(joined.valid) == [(-1, 3)] * reds["valid"]
    assert labels_of(joined.test) == [(-1, 4 if label == 0 else 3) for _, label in before["test"]]
    np.testing.assert_array_equal(targets.class_counts(joined.train), [0, 3, 0, reds["train"], blues["train"]])


def test_without_a_tree_the_classes_of_both_sets(rectangles, green):
    joined = joint.join(catalog.load_boxes(str(rectangles)), labelled=green)
    assert joined.train.classes == ("blue", "red", "green")
    assert joint.parents(joined.train) == ()
    assert labels_of(joined.train)[-1] == (2,)
    example = joined.train[len(joined.train) - 1]
    assert example["image"].shape == (20, 30, 3)
    assert example["boxes"].shape == (0, 4)
    assert example["image_label"] == 2
    assert joined.train[0]["image_label"] == -1
    assert "image_label" not in joined.test[0]


@pytest.mark.parametrize("view", ["jitter", "ssd", "whole"])
def test_both_kinds_share_a_batch(rectangles, tree, green, view):
    joined = joint.join(catalog.load_boxes(str(rectangles)), tree, green, ["blue"])
    images = settings.DetectionImages(view=view)
    batch = next(iter(images.batches(settings.Reading(threads=0), joined.train, 40, 0, 64, "squeeze")(0)))
    has_label = batch["image_label"] >= 0
    assert set(batch["image_label"].tolist()) == {-1, 1, 4}
    assert not batch["box_mask"][has_label].any()
    assert batch["box_mask"][~has_label].any(1).mean() > 0.8
    means = batch["image"][batch["image_label"] == 1].mean((1, 2))
    assert (means[:, 1] > means[:, 0]).all()


def test_an_image_that_shows_other_classes_too_is_left_out(tmp_path, capsys):
    Image.new("RGB", (80, 60)).save(tmp_path / "0.png")
    Image.new("RGB", (80, 60)).save(tmp_path / "1.png")
    content = {
        "images": [{"id": i, "file_name": f"{i % 2}.png", "width": 80, "height": 60} for i in range(2)],
        "annotations": [
            {"id": i, "image_id": i // 2, "category_id": 1 + (i == 1), "bbox": [i, 1, 20, 30]} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    whole = catalog.open_annotated(tmp_path)["all"]
    source = annotations.AnnotatedImages(whole)
    found = splits.Splits(source, source, None)
    joined = joint.join(found, without_boxes=["cat"])
    assert labels_of(joined.train) == [(0,)]
    assert joined.test is None
    assert (
        "0 images with boxes, 1 with a label only; 1 of train left out; 2 of valid left out" in capsys.readouterr().out
    )


def test_what_cannot_be_is_one_line(rectangles, tree, green, tmp_path):
    found = catalog.load_boxes(str(rectangles))
    with pytest.raises(UserError, match="--without-boxes pink: the classes are blue, red"):
        joint.join(found, without_boxes=["pink"])
    tree.write_text('["red", "green"]')
    with pytest.raises(UserError, match=r"tree.json: not in the tree: blue; it has red, green"):
        joint.join(found, tree, green)
    with pytest.raises(UserError, match="no such folder"):
        joint.join(found, labelled=tmp_path / "none")
