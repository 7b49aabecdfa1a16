"""Masks of annotations with outlines, and of data sets that tensorflow-datasets prepared."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tfds_files import png, prepare

from cnnjax.data import masked, segmented
from cnnjax.types import IGNORED, UserError

SIZE = (6, 9)  # height and width


def coco(root, annotations):
    """COCO file of three images; the annotations are those of each."""
    root.mkdir(exist_ok=True)
    objects = []
    for image in range(3):
        Image.new("RGB", SIZE[::-1], (image, 0, 0)).save(root / f"{image}.png")
        for each in annotations:
            objects.append({"id": len(objects), "image_id": image, "bbox": [0, 0, 9, 6], "iscrowd": 0, **each})
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(3)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
        "annotations": objects,
    }
    (root / "all.json").write_text(json.dumps(content))
    return root / "all.json"


def square(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_outlines_are_painted_small_ones_over_large_ones(tmp_path):
    small = {"category_id": 3, "segmentation": square(1, 1, 3, 3)}
    large = {"category_id": 7, "segmentation": square(0, 0, 6, 4)}
    runs = {"size": list(SIZE), "counts": [47, 1, 5, 1]}  # by columns: the last row of the last two
    of_crowd = {"category_id": 7, "iscrowd": 1, "bbox": [7, 5, 2, 1], "segmentation": runs}
    expected = np.zeros(SIZE, np.uint8)
    expected[:4, :6], expected[1:3, 1:3], expected[5, 7:] = 2, 1, IGNORED
    for order in ([small, large, of_crowd], [of_crowd, large, small]):
        found = segmented.load(coco(tmp_path / "a", order))
        assert found.train.classes == ("background", "ant", "cat")
        example = found.train[0]
        assert example["image"].shape == (*SIZE, 3)
        np.testing.assert_array_equal(example["segmentation"], expected)
    pixels, seen = segmented.class_pixels(found.train)
    assert pixels.tolist() == [28, 4, 20]
    assert seen.tolist() == [52, 52, 52]
    assert segmented.sizes(found.train) == [SIZE]


def test_pixels_of_an_object_that_only_has_a_box_are_no_class(tmp_path):
    boxed = {"category_id": 3, "bbox": [4, 2, 3, 3]}
    outlined = {"category_id": 7, "segmentation": square(0, 0, 2, 2), "bbox": [0, 0, 2, 2]}
    labels = segmented.load(coco(tmp_path / "a", [boxed, outlined])).train[0]["segmentation"]
    assert (labels[2:5, 4:7] == IGNORED).all()
    assert (labels[:2, :2] == 2).all()
    assert (labels == IGNORED).sum() == 9
    with pytest.raises(UserError, match="its annotations have boxes, but no outlines"):
        segmented.load(coco(tmp_path / "b", [boxed]))


def test_what_cannot_be_is_one_line(tmp_path):
    path = coco(tmp_path / "a", [{"category_id": 7, "segmentation": square(0, 0, 6, 4)}])
    with pytest.raises(UserError, match="has its classes: --classes and --ignore are for folders of masks"):
        segmented.load(path, classes=("x",))
    wrong = {"category_id": 7, "segmentation": {"size": [3, 3], "counts": [1, 8]}}
    found = segmented.load(coco(tmp_path / "b", [wrong]))
    with pytest.raises(UserError, match=r"b/\d.png: a mask of \(3, 3\)"):
        found.train[0]
    assert "a mask of (3, 3)" in found.train.source.problems(np.arange(1), None)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images beside masks .*; or annotations with outlines, but "):
        segmented.load(tmp_path / "empty")
    with pytest.raises(UserError, match="nor a known data set with masks, as are oxford_iiit_pet, cityscapes"):
        masked.prepared("mnist", "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "keys", "values", "expected"),
    [
        ("oxford_iiit_pet", None, ("image", "segmentation_mask"), [1, 2, 3], [0, 1, 2]),
        ("cityscapes", "semantic_segmentation", ("image_left", "segmentation_label"), [7, 0, 33], [0, IGNORED, 18]),
    ],
)
def test_prepared_data_sets_have_masks(tmp_path, name, config, keys, values, expected):
    features = {keys[0]: tfds.features.Image(), keys[1]: tfds.features.Image(shape=(None, None, 1))}
    mask = np.repeat([values], 4, 0)
    splits = {
        split: [{keys[0]: png(np.full((4, 3, 3), i)), keys[1]: png(mask)} for i in range(count)]
        for split, count in (("train", 8), ("test", 2))
    }
    prepare(tmp_path, name, features, splits, config)
    found = segmented.load("/".join(filter(None, (name, config))), data_dir=tmp_path)
    assert {part: len(each) for part, each in found.given.items()} == {"train": 7, "valid": 1, "test": 2}
    assert found.train.classes[0] in ("pet", "road")
    assert segmented.sizes(found.test) == [(4, 3)] * 2
    for i in range(2):
        np.testing.assert_array_equal(found.test[i]["segmentation"], np.repeat([expected], 4, 0))
    assert {int(found.test[i]["image"][0, 0, 0]) for i in range(2)} == {0, 1}
