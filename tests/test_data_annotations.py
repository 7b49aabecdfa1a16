"""Readers of Pascal VOC, COCO and VGG Image Annotator: real data, hand-written files, and every fault."""

import csv
import json
import re
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import ExifTags, Image

from cnnjax.data import annotations, formats
from cnnjax.data.transforms import pad_boxes
from cnnjax.types import UserError

# ---- writing the three formats ----


def paint(path, box=(20, 30, 60, 50), size=(100, 80)):
    """Writes a black image with a white box, xyxy from 0."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def xml(objects, size=(100, 80), filename="a.png"):
    """XML as LabelImg writes it; an object is (class, xmin, ymin, xmax, ymax) or (…, difficult)."""
    inner = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><difficult>{(*rest, 0)[0]}</difficult><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d, *rest in objects
    )
    size_element = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>x</folder><filename>{filename}</filename>{size_element}{inner}</annotation>"


def voc(root, pictures, **more):
    """Writes a VOC folder of ``name → objects``."""
    (root / "Annotations").mkdir(parents=True)
    for name, objects in pictures.items():
        paint(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(xml(objects, **more))
    return root


def coco(root, notes, images=({"id": 7, "file_name": "a.png", "width": 100, "height": 80},), name="instances_val.json"):
    """Writes a COCO folder; a note is (category_id, bbox) or a dict."""
    notes = [n if isinstance(n, dict) else {"image_id": 7, "category_id": n[0], "bbox": n[1]} for n in notes]
    content = {
        "images": list(images),
        "annotations": [{"id": i, "iscrowd": 0, **note} for i, note in enumerate(notes, 1)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(content))
    paint(root / "val" / "a.png")
    return root


def region(label, *box, shape="rect", attribute="class"):
    keys = ("x", "y", "width", "height")
    return {
        "shape_attributes": {"name": shape, **dict(zip(keys, box, strict=False))},
        "region_attributes": {attribute: label},
    }


def via(root, regions, form="json"):
    """Writes a VIA export of one image in one of its forms."""
    paint(root / "a.png")
    if form.startswith("csv"):
        with (root / "via.csv").open("w", newline="") as file:
            table = csv.writer(file)
            names = (
                "#filename" if form == "csv, version 1" else "filename",
                "file_size",
                "file_attributes",
                "region_count",
                "region_id",
            )
            table.writerow((*names, "region_shape_attributes", "region_attributes"))
            for i, each in enumerate(regions):
                texts = (json.dumps(each[key]) for key in ("shape_attributes", "region_attributes"))
                table.writerow(("a.png", 9, "{}", len(regions), i, *texts))
            table.writerow(("b.png", 9, "{}", 0, 0, "{}", "{}"))
        paint(root / "b.png")
        return root
    if form == "version 1":
        regions = {str(i): each for i, each in enumerate(regions)}
    content = {"a.png9": {"filename": "a.png", "size": 9, "regions": regions, "file_attributes": {}}}
    if form == "project":
        content = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}}
    (root / "via.json").write_text(json.dumps(content))
    return root


def kinds(found):
    return Counter(fault.kind for fault in found.faults)


# ---- real data ----


def test_bccd(shared):
    found = annotations.open(shared / "data/bccd", check=True)
    written = sum(len(re.findall("<object>", p.read_text())) for p in (shared / "data/bccd/Annotations").iterdir())
    assert (found.kind, found.classes) == ("voc", ("Platelets", "RBC", "WBC"))
    assert written == 4888 == sum(len(record.boxes) for record in found.records) + len(found.faults)
    assert len(found.records) == 364
    assert [(fault.file.name, fault.object, fault.kind) for fault in found.faults] == [
        ("BloodImage_00338.xml", "object 13 (RBC)", "degenerate"),
        ("BloodImage_00343.xml", "object 4 (RBC)", "degenerate"),
    ]
    assert found.faults[0].what == "xmin ymin xmax ymax 504 337 504 337"


def test_animals(shared):
    found = annotations.open(shared / "data/animals")
    assert (len(found.records), found.classes, found.faults) == (363, ("kangaroo", "raccoon"), ())
    assert len(annotations.with_object_count(found, 1).records) == 291
    parts = [annotations.open(shared / "data/animals", split) for split in ("train", "val", "test")]
    assert [len(part.records) for part in parts] == [255, 36, 72]
    assert len({record.id for part in parts for record in part.records}) == 363
    example = annotations.AnnotatedImages(parts[0])[0]
    assert {key: (value.dtype.name, value.shape) for key, value in example.items()} == {
        "image": ("uint8", (319, 450, 3)),
        "boxes": ("float32", (2, 4)),
        "labels": ("int32", (2,)),
        **dict.fromkeys(("ignore", "crowd", "difficult"), ("bool", (2,))),
    }
    np.testing.assert_array_equal(example["boxes"], [[232, 88, 386, 262], [133, 104, 341, 253]])


@pytest.mark.parametrize(
    ("split", "images", "boxes"),
    [
        ("boxes_train2017", 128, 929),
        ("boxes_val2017", 128, 898),
        ("instances_train2017", 100, 746),
        ("val2017", 100, 712),  # instances_val2017
    ],
)
def test_coco_mini(shared, split, images, boxes):
    found = annotations.open(shared / "data/coco_mini", split)
    assert (found.kind, len(found.records), len(found.classes)) == ("coco", images, 80)
    assert sum(len(record.boxes) for record in found.records) == boxes
    assert kinds(found).keys() <= {"no objects"}
    assert all(record.path.is_file() for record in found.records)
    content = json.loads((found.records[0].path.parents[1] / f"annotations/{_whole(split)}.json").read_text())
    note = content["annotations"][0]
    record = next(record for record in found.records if record.id == note["image_id"])
    x, y, width, height = note["bbox"]
    np.testing.assert_allclose(record.boxes[0], [x, y, x + width, y + height], atol=1e-3)
    names = {each["id"]: each["name"] for each in content["categories"]}
    assert found.classes[record.labels[0]] == names[note["category_id"]]


def _whole(split):
    return split if "_" in split else f"instances_{split}"


# ---- places of boxes ----


@pytest.mark.parametrize("write", ["voc", "coco", "via", "csv"])
def test_the_box_is_on_the_paint(tmp_path, write):
    if write == "voc":
        voc(tmp_path, {"a": [("cat", 21, 31, 60, 50)]})  # counted from 1, the last included
    elif write == "coco":
        coco(tmp_path, [(3, [20, 30, 40, 20])])
    else:
        via(tmp_path, [region("cat", 20, 30, 40, 20)], "csv" if write == "csv" else "json")
    example = annotations.AnnotatedImages(annotations.open(tmp_path))[0]
    rows, columns = np.nonzero(example["image"][..., 0])
    np.testing.assert_array_equal(example["boxes"], [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])


def test_voc_convention_and_flags(tmp_path):
    voc(tmp_path, {"a": [("dog", 1, 1, 100, 80), ("cat", 11, 2, 12, 9.5, 1)]})
    found = annotations.open(tmp_path)
    (record,) = found.records
    np.testing.assert_array_equal(record.boxes, [[0, 0, 100, 80], [10, 1, 12, 9.5]])
    assert (record.labels.tolist(), record.difficult.tolist(), found.faults) == ([1, 0], [False, True], ())
    assert annotations.AnnotatedImages(found)[0]["ignore"].tolist() == [False, True]


def test_coco_labels_are_categories_by_id_and_crowds_are_marked(tmp_path):
    coco(tmp_path, [(18, [0, 0, 5, 5]), {"image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 1}])
    found = annotations.open(tmp_path)
    assert (found.classes, found.records[0].labels.tolist(), found.records[0].id) == (("cat", "dog"), [1, 0], 7)
    assert annotations.AnnotatedImages(found)[0]["ignore"].tolist() == [False, True]


@pytest.mark.parametrize("form", ["json", "project", "version 1", "csv", "csv, version 1"])
def test_every_form_of_via_says_the_same(tmp_path, form):
    regions = [region("dog", 1, 2, 30, 40), region("cat", 5, 5, 6, 7), region("cat", 1, 1, shape="circle")]
    found = annotations.open(via(tmp_path, regions, form))
    np.testing.assert_array_equal(found.records[0].boxes, [[1, 2, 31, 42], [5, 5, 11, 12]])
    assert (found.kind, found.classes, found.records[0].labels.tolist()) == ("via", ("cat", "dog"), [1, 0])
    assert (found.records[0].width, found.records[0].height) == (100, 80)
    assert [fault[1:] for fault in found.faults][:1] == [
        ("region 3 (cat)", "unreadable", "a circle without the numbers it needs")
    ]
    assert len(found.records) == (2 if form.startswith("csv") else 1)


def test_via_class_is_the_only_attribute_or_the_usual_one_or_what_is_ticked(tmp_path):
    only_one = via(tmp_path / "1", [region("x", 1, 1, 5, 5, attribute="species")])
    assert annotations.open(only_one).classes == ("x",)
    two = [region("x", 1, 1, 5, 5), region("y", 2, 2, 5, 5)]
    two[0]["region_attributes"]["remark"] = "blurred"
    assert annotations.open(via(tmp_path / "2", two)).classes == ("x", "y")
    ticked = [region({"x": True, "y": False}, 1, 1, 5, 5), region({"x": True, "y": True}, 2, 2, 5, 5)]
    found = annotations.open(via(tmp_path / "3", ticked))
    assert (found.classes, kinds(found)) == (("x",), {"unknown class": 1})
    two[0]["region_attributes"], two[1]["region_attributes"] = {"who": "x"}, {"what": "y"}
    with pytest.raises(UserError, match=r"which region attribute of \['what', 'who'\] is the class\?"):
        annotations.open(via(tmp_path / "4", two))


# ---- faults ----

BOXES = {
    (10, 10, 10, 20): "degenerate",
    (30, 10, 20, 20): "degenerate",
    (150, 10, 170, 20): "outside",
    (-30, 10, -5, 20): "outside",
    (90, 10, 130, 20): "clipped",
    (1, -9, 20, 20): "clipped",
    (90.2, 70, 100.4, 80.3): None,
    (5, 5, float("nan"), 9): "unreadable",
    (5, 5, float("inf"), 9): "unreadable",
}


@pytest.mark.parametrize("write", ["voc", "coco", "via"])
@pytest.mark.parametrize("box", BOXES)
def test_faulty_boxes_are_listed_and_never_passed_on(tmp_path, write, box):
    left, top, right, bottom = box
    good = (3, 3, 9, 9)
    if write == "voc":
        voc(tmp_path, {"a": [("cat", *good), ("cat", left + 1, top + 1, right, bottom)]})
        if box == (10, 10, 10, 20):
            (tmp_path / "Annotations/a.xml").write_text(xml([("cat", *good), ("cat", 10, 10, 10, 20)]))
    else:
        xywh = [[a, b, c - a, d - b] for a, b, c, d in (good, box)]
        if write == "coco":
            coco(tmp_path, [(3, each) for each in xywh])
        else:
            via(tmp_path, [region("cat", *each) for each in xywh])
    found = annotations.open(tmp_path)
    want, (record,) = BOXES[box], found.records
    assert kinds(found) == ({want: 1} if want else {})
    assert len(record.boxes) == (2 if want in ("clipped", None) else 1)
    assert (record.boxes >= 0).all()
    assert (record.boxes <= [100, 80, 100, 80]).all()
    assert (record.boxes[:, :2] < record.boxes[:, 2:]).all()
    if want:
        assert found.faults[0].file.name == ("a.xml" if write == "voc" else "a.png")
        assert re.search("object 2|annotation 2|region 2", found.faults[0].object)


def test_other_faults_of_voc(tmp_path):
    voc(tmp_path, {"a": [("cat", 1, 1, 9, 9), ("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)], "b": [], "c": []})
    broken = xml([("cat", 1, 1, 9, 9)]).replace("<xmax>9</xmax>", "<xmax/>").replace("<name>cat</name>", "<name/>")
    (tmp_path / "Annotations/c.xml").write_text(broken)
    found = annotations.open(tmp_path)
    assert kinds(found) == {"duplicate": 1, "no objects": 1, "unreadable": 1}
    assert [record.labels.tolist() for record in found.records] == [[0, 1], [], []]
    assert annotations.FAULTS.keys() >= kinds(found).keys()
    found = annotations.open(tmp_path, classes=("dog", "bird"))
    assert (found.records[0].labels.tolist(), kinds(found)["unknown class"]) == ([0], 2)


def test_other_faults_of_coco(tmp_path):
    notes = [(3, [1, 1, 5, 5]), (99, [1, 1, 5, 5]), (3, None), (3, [1, 2, 3]), {"image_id": 8, "category_id": 3}]
    found = annotations.open(coco(tmp_path, notes))
    assert kinds(found) == {"unknown class": 1, "unreadable": 2, "no picture listed": 1}
    assert len(found.records[0].boxes) == 1


def test_pictures_are_checked_if_asked(tmp_path):
    box = [("cat", 1, 1, 9, 9)]
    voc(tmp_path, dict.fromkeys(["good", "gone", "cut", "grown"], box))
    (tmp_path / "JPEGImages/gone.png").unlink()
    content = (tmp_path / "JPEGImages/good.png").read_bytes()
    (tmp_path / "JPEGImages/cut.png").write_bytes(content[: len(content) // 2])
    paint(tmp_path / "JPEGImages/grown.png", size=(200, 160))
    assert len(annotations.open(tmp_path).records) == 4
    found = annotations.open(tmp_path, check=True)
    assert [record.id for record in found.records] == ["good"]
    assert {fault.file.stem: fault.kind for fault in found.faults} == {
        "gone": "missing picture",
        "cut": "unreadable picture",
        "grown": "size",
    }
    with pytest.raises(UserError, match=r"grown\.png: labelled at 100×80, but it has 200×160 pixels"):
        annotations.AnnotatedImages(annotations.open(tmp_path))[3]
    shutil.rmtree(tmp_path / "JPEGImages")
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(UserError, match=r"no picture with annotations is left: 4 × missing picture, such as .*a\.png"):
        annotations.open(tmp_path, check=True)


def test_size_from_the_picture_where_it_is_not_written(tmp_path):
    voc(tmp_path / "1", {"a": [("cat", 1, 1, 300, 9)]}, size=None)
    voc(tmp_path / "2", {"a": [("cat", 1, 1, 300, 9)]}, size=(0, 0))
    for root in (tmp_path / "1", tmp_path / "2"):
        np.testing.assert_array_equal(annotations.open(root).records[0].boxes, [[0, 0, 100, 9]])
    (tmp_path / "1/JPEGImages/a.png").unlink()
    (tmp_path / "2/JPEGImages/a.png").write_bytes(b"")
    for root, kind in ((tmp_path / "1", "missing"), (tmp_path / "2", "unreadable")):
        with pytest.raises(UserError, match=f"{kind} picture"):
            annotations.open(root)


def rotated_photo(path, box=(0, 0, 50, 40)):
    """Writes a photo that is stored as 100×80 pixels and shown as 80×100, its box upper right."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(paint(path, box)) as image:
        image.save(path, exif=exif)


@pytest.mark.parametrize("labelled_upright", [True, False])
def test_a_turned_photo_is_shown_as_it_was_labelled(tmp_path, labelled_upright):
    voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)]}, size=(80, 100) if labelled_upright else (100, 80))
    (tmp_path / "JPEGImages/a.png").unlink()
    rotated_photo(tmp_path / "JPEGImages/a.jpg")
    image = annotations.AnnotatedImages(annotations.open(tmp_path))[0]["image"]
    assert image.shape == ((100, 80, 3) if labelled_upright else (80, 100, 3))
    assert image[10, -10, 0] > 128 if labelled_upright else image[10, 10, 0] > 128
    assert not kinds(annotations.open(tmp_path, check=True))


def test_annotators_in_a_browser_see_photos_upright(tmp_path):
    via(tmp_path, [region("cat", 40, 0, 40, 50)])
    rotated_photo(tmp_path / "a.png")
    found = annotations.open(tmp_path)
    assert (found.records[0].width, found.records[0].height, found.faults) == (80, 100, ())
    assert (annotations.AnnotatedImages(found)[0]["image"][1:49, 41:79] > 128).all()


# ---- files and folders ----


def test_xml_beside_the_pictures_and_stale_names(tmp_path):
    paint(tmp_path / "photo 1.png")
    paint(tmp_path / "other.png")
    (tmp_path / "photo 1.xml").write_text(xml([("cat", 1, 1, 9, 9)], filename="other.png"))
    assert annotations.open(tmp_path).records[0].path.name == "photo 1.png"
    (tmp_path / "photo 1.png").unlink()
    (tmp_path / "photo 1.xml").write_text(xml([("cat", 1, 1, 9, 9)], filename="C:\\me\\other.png"))
    assert annotations.open(tmp_path).records[0].path.name == "other.png"


def test_splits_of_voc(tmp_path):
    voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)], "b 2": [("dog", 1, 1, 9, 9)], "c": [("elk", 1, 1, 9, 9)]})
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b 2\n\nc  1\nc\nz\n")
    found = annotations.open(tmp_path, "train")
    assert [record.id for record in found.records] == ["b 2", "c"]
    assert found.classes == ("cat", "dog", "elk")  # of the whole folder, for every split
    assert kinds(found) == {"listed twice": 1, "not annotated": 1}
    with pytest.raises(UserError, match=r"val\.txt: no such list; --split may be one of: train$"):
        annotations.open(tmp_path, "val")


def test_choice_of_a_coco_file(tmp_path):
    for name in ("instances_val.json", "captions_val.json", "person_train.json"):
        coco(tmp_path, [(3, [1, 1, 5, 5])], name=name)
    assert annotations.open(tmp_path, "val").kind == "coco"  # the instances
    assert annotations.open(tmp_path, "train").kind == "coco"
    assert annotations.open(tmp_path / "annotations/captions_val.json").kind == "coco"
    for split in (None, "test"):
        with pytest.raises(UserError, match="choose a --split among captions_val, instances_val, person_train"):
            annotations.open(tmp_path, split)


# ---- damaged files ----

BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + xml([("&b;", 1, 1, 9, 9)])


@pytest.mark.parametrize(
    "text",
    [
        BOMB.encode(),
        BOMB.replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16"),
        b"",
        xml([("cat", 1, 1, 9, 9)]).encode()[:-20],
        b"<html></html>",
        b"\xff\xfe\x00\x80",
        xml([("cat", 1, 1, 9, 9)], size=("wide", 80)).encode(),
        xml([("cat", 1, 1, 9, 9)], size=("inf", 80)).encode(),
    ],
)
def test_damaged_xml_is_one_error(tmp_path, text):
    voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)], "b": []})
    (tmp_path / "Annotations/b.xml").write_bytes(text)
    with pytest.raises(UserError, match=r"b\.xml: not an annotation of Pascal VOC .*1 of 2 such files") as error:
        annotations.open(tmp_path)
    assert "\n" not in str(error.value)
    assert ("DOCTYPE" in str(error.value)) == (b"D\0O\0C" in text or b"DOC" in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"images": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "no annotations in a known format; expected .*COCO"),
        ('{"images": [], "annotations": [], "categories": []}', "no picture with annotations is left"),
        ('{"images": [1], "annotations": [], "categories": []}', "not COCO's JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "no 'file_name'"),
        ('{"images": [{"id": [], "file_name": "a"}], "annotations": [], "categories": []}', "not COCO's JSON"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "no 'name'"),
        ('{"images": [], "annotations": [{}], "categories": []}', "no 'category_id'"),
        ('{"images": [], "annotations": []}', "no 'categories'"),
        ('{"a": {"filename": "a.png", "regions": [{}]}}', "not an export of VGG Image Annotator"),
        ('{"a": {"filename": "a.png", "regions": 3}}', "not an export of VGG Image Annotator"),
    ],
)
def test_damaged_json_is_one_error(tmp_path, text, message):
    file = tmp_path / "notes.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        annotations.open(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_csv_and_other_tables(tmp_path):
    file = via(tmp_path, [region("cat", 1, 1, 5, 5)], "csv") / "via.csv"
    text = file.read_text()
    file.write_text(text.replace("rect", 'rect""",'))
    with pytest.raises(UserError, match=r"via\.csv: a damaged table"):
        annotations.open(tmp_path)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(annotations.NoAnnotationsError, match=r"via\.csv: no annotations in a known format"):
        annotations.open(tmp_path)


def test_same_image_id_twice(tmp_path):
    image = {"id": 7, "file_name": "a.png", "width": 100, "height": 80}
    with pytest.raises(UserError, match="an image id occurs twice: 2 images, 1 ids"):
        annotations.open(coco(tmp_path, [], (image, image)))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        annotations.open(tmp_path / "none")
    with pytest.raises(
        annotations.NoAnnotationsError, match=r"expected annotations/\*\.json \(COCO.*Annotations/\*\.xml"
    ):
        annotations.open(tmp_path)


# ---- for training ----


def test_pad_boxes():
    boxes, labels = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), np.array([2, 1], np.int32)
    out = pad_boxes({"boxes": boxes, "labels": labels}, 3)
    np.testing.assert_array_equal(out["boxes"], [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]])
    assert (out["labels"].tolist(), out["box_mask"].tolist()) == ([2, 1, 0], [True, True, False])
    assert (out["boxes"].dtype, out["labels"].dtype, out["box_mask"].dtype) == (np.float32, np.int32, bool)
    assert not pad_boxes({"boxes": boxes[:0], "labels": labels[:0]}, 2)["box_mask"].any()
    with pytest.raises(UserError, match="an image has 2 boxes, room is for 1"):
        pad_boxes({"boxes": boxes, "labels": labels}, 1)


def test_no_image_with_so_many_objects_is_an_error(tmp_path):
    found = annotations.open(voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)]}))
    with pytest.raises(UserError, match="no picture of 1 has exactly 2"):
        annotations.with_object_count(found, 2)


def test_pad_boxes_keeps_real_rows_of_every_field_first():
    example = {
        "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        "labels": np.array([4, 5, 6], np.int32),
        "ignore": np.array([True, False, True]),
        "instance_masks": np.ones((3, 2, 2), np.uint8),
        "box_mask": np.array([True, False, True]),
        "image": np.zeros((3, 3, 3), np.uint8),
    }
    out = pad_boxes(example, 4)
    assert out["boxes"][:, 0].tolist() == [0, 8, 0, 0]
    assert (out["labels"].tolist(), out["ignore"].tolist()) == ([4, 6, 0, 0], [True, True, False, False])
    assert (out["box_mask"].tolist(), out["instance_masks"].any((1, 2)).tolist()) == ([True, True, False, False],) * 2
    assert out["image"].shape == (3, 3, 3)
    assert out["ignore"].dtype == bool


NEW_FORMAT = """
import numpy as np
from cnnjax.data.formats.annotated import AnnotatedImage, Labelled, Read

EXPECTED = "one.txt (for a test)"

def read_annotations(path, split):
    file = path / "one.txt"
    if not file.is_file():
        return None
    name, label, *box = file.read_text().split()
    image = AnnotatedImage(name, file, path / name, None, [Labelled("object", label, tuple(map(float, box)))])
    return Read([image], (label,))
"""


def test_a_new_format_is_one_new_file(tmp_path, monkeypatch):
    modules, data = tmp_path / "modules", tmp_path / "data"
    modules.mkdir()
    (modules / "one_line.py").write_text(NEW_FORMAT)
    paint(data / "a.png")
    (data / "one.txt").write_text("a.png cat 20 30 60 50")
    with pytest.raises(annotations.NoAnnotationsError):
        annotations.open(data)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(modules)])
    found = annotations.open(data)
    assert (found.kind, found.classes, found.records[0].boxes.tolist()) == ("one_line", ("cat",), [[20, 30, 60, 50]])
    with pytest.raises(annotations.NoAnnotationsError, match=r"one\.txt \(for a test\)"):
        annotations.open(modules)
    sys.modules.pop("cnnjax.data.formats.one_line")


def test_xml_wins_over_tables_in_one_folder(tmp_path):
    voc(tmp_path, {"a": [("cat", 1, 1, 9, 9)]})
    (tmp_path / "notes.json").write_text("no JSON")
    assert annotations.open(tmp_path).kind == "voc"
