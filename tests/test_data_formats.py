"""Annotation files as tools write them: folders, ids, paths, shapes and their masks, YOLO's text; damaged ones."""

import json
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import annotations, catalog
from cnnjax.data.formats import masks
from cnnjax.data.formats.annotated import NoSplitError, Runs
from cnnjax.types import UserError

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
WIDTH, HEIGHT = 60, 40
SQUARE = [5, 5, 20, 20]  # xywh


def paint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(file, images, objects, categories=((1, "cat", "animal"), (2, "dog", "animal"))):
    """Writes a COCO file; images are (id, name), objects (image, category, more fields)."""
    content = {
        "images": [{"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT} for key, name in images],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": SQUARE, "iscrowd": 0, **more}
            for i, (image, category, more) in enumerate(objects)
        ],
        "categories": [{"id": key, "name": name, "supercategory": above} for key, name, above in categories],
    }
    return write(file, json.dumps(content))


def faults(found):
    return [(fault.object, fault.kind) for fault in found.faults]


# ---- COCO ----


@pytest.mark.parametrize("key", [str, float, lambda value: f"{value}.0"], ids=["text", "float", "text of a float"])
def test_ids_of_coco_may_be_texts_or_floats(tmp_path, key):
    paint(tmp_path / "a.png")
    coco(tmp_path / "a.json", [(7, "a.png")], [(key(7), key(2), {})])
    found = annotations.open(tmp_path)
    assert (found.classes, found.records[0].labels.tolist(), found.faults) == (("cat", "dog"), [1], ())


def test_a_category_over_the_others_is_no_class_and_equal_names_are_one(tmp_path):
    """Roboflow's category 0 is the name of the project; COCO's own categories without boxes stay classes."""
    paint(tmp_path / "a.png")
    categories = [
        (0, "fish", "none"),
        (1, "peix", "fish"),
        (2, "taca", "fish"),
        (3, "peix", "fish"),
        (4, "rare", "fish"),
    ]
    coco(
        tmp_path / "a.json",
        [(0, "a.png")],
        [(0, 1, {}), (0, 2, {"bbox": [1, 1, 5, 5]}), (0, 3, {"bbox": [9, 9, 5, 5]})],
        categories,
    )
    found = annotations.open(tmp_path)
    assert found.classes == ("peix", "taca", "rare")
    assert found.records[0].labels.tolist() == [0, 1, 0]
    assert faults(found) == [("fish", "no class"), ("peix", "class listed twice")]
    coco(tmp_path / "a.json", [(0, "a.png")], [(0, 0, {})], categories)
    assert annotations.open(tmp_path).classes == ("fish", "peix", "taca", "rare")  # it is used


@pytest.mark.parametrize(
    "name", ["a.png", "images\\a.png", "..\\images\\a.png", "images/a.png", "C:\\Users\\me\\a.png", "/home/you/x/a.png"]
)
def test_paths_of_other_systems_and_computers_lead_to_the_image(tmp_path, name):
    paint(tmp_path / "images" / "a.png")
    coco(tmp_path / "annotations" / "instances_default.json", [(0, name)], [(0, 1, {})])
    found = annotations.open(tmp_path)
    assert found.records[0].path.resolve() == tmp_path / "images" / "a.png"
    assert faults(found) == ([(name.replace("\\", "/"), "other folder")] if name.startswith(("C:", "/")) else [])


def test_a_name_that_two_images_have_is_not_guessed(tmp_path):
    for folder in ("images", "other"):
        paint(tmp_path / folder / "a.png")
    coco(tmp_path / "ann" / "x_other.json", [(0, "C:\\a.png")], [(0, 1, {})])
    found = annotations.open(tmp_path / "ann" / "x_other.json")
    assert not found.records[0].path.exists()


# ---- layouts ----


VOC = """<annotation><filename>{name}</filename><size><width>60</width><height>40</height></size>
<object><name>cat</name><bndbox><xmin>6</xmin><ymin>6</ymin><xmax>25</xmax><ymax>25</ymax></bndbox></object></annotation>"""
YOLO = "0 0.25 0.375 0.333333333 0.5\n"  # SQUARE


def roboflow(root, kind):
    """Writes an export with the splits train, valid and test of one image each."""
    for split in ("train", "valid", "test"):
        folder = root / split
        name = f"{split}_jpg.rf.0a.jpg"
        if kind == "coco":
            coco(
                folder / "_annotations.coco.json", [(0, name)], [(0, 1, {})], [(0, "pets", "none"), (1, "cat", "pets")]
            )
        elif kind == "voc":
            write(folder / f"{split}_jpg.rf.0a.xml", VOC.format(name=name))
        else:
            write(folder / "labels" / f"{split}_jpg.rf.0a.txt", YOLO)
            folder = folder / "images"
        paint(folder / name)
    if kind == "yolo":
        write(
            root / "data.yaml",
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n",
        )
    return root


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_splits_of_a_roboflow_export(tmp_path, kind, split):
    found = annotations.open(roboflow(tmp_path, kind), split)
    assert (found.kind, found.classes) == (kind, ("cat",))
    assert found.records[0].path.name == f"{split}_jpg.rf.0a.jpg"
    np.testing.assert_allclose(found.records[0].boxes, [[5, 5, 25, 25]], atol=1e-3)
    assert annotations.open(tmp_path / split).records[0].path == found.records[0].path


def test_voc_in_lower_case_and_coco_2017(tmp_path):
    paint(tmp_path / "signs" / "images" / "road0.png")
    write(tmp_path / "signs" / "annotations" / "road0.xml", VOC.format(name="road0.png"))
    assert annotations.open(tmp_path / "signs").records[0].path == tmp_path / "signs" / "images" / "road0.png"
    for split in ("train", "val"):
        paint(tmp_path / "coco" / f"{split}2017" / "a.png")
        for name in ("instances", "captions"):
            coco(tmp_path / "coco" / "annotations" / f"{name}_{split}2017.json", [(0, "a.png")], [(0, 1, {})])
    for split in ("val", "val2017", "instances_val2017"):
        assert annotations.open(tmp_path / "coco", split).records[0].path.parent.name == "val2017"


def test_images_after_the_first_twenty_are_looked_for_too(tmp_path):
    names = [f"{i}.png" for i in range(30)]
    for name in names:
        paint(tmp_path / name)
    listed = [*names[:29], "/home/you/29.png"]
    coco(tmp_path / "a.json", list(enumerate(listed)), [(29, 1, {})])
    found = annotations.open(tmp_path)
    assert [record.path for record in found.records] == [tmp_path / name for name in names]
    assert annotations.counted([f for f in found.faults if f.kind != "no objects"]) == (
        "1 faults in their labels: 1 × other folder"
    )


def test_split_flag_of_files_whose_names_say_no_part(tmp_path):
    """The error names --split, which localize.py, inspect_data.py and evaluate.py have."""
    for name in ("mine", "yours"):
        images = [(i, f"{name}{i}.png") for i in range(20)]
        for _, image in images:
            paint(tmp_path / image)
        coco(tmp_path / f"{name}.json", images, [(i, 1 + i % 2, {}) for i in range(20)])
    with pytest.raises(UserError, match="several files; choose a --split among mine, yours"):
        catalog.load_annotated(tmp_path, 0.2, 0.2, 1)
    splits = catalog.load_annotated(tmp_path, 0.2, 0.2, 1, "yours")
    assert sum(len(source) for source in vars(splits).values() if source is not None) == 20
    for script in ("localize", "inspect_data", "evaluate"):
        assert "    split: str | None" in (EXPERIMENTS / f"{script}.py").read_text()


# ---- shapes ----


def third(shapes):
    """Content of a VIA 3 project with these shapes (kind, numbers) in a.png."""
    return {
        "project": {"data_format_version": "3.1.1"},
        "config": {},
        "attribute": {"1": {"aname": "class", "type": 4, "options": {"0": "cat", "dog": "dog"}}},
        "file": {"1": {"fid": "1", "fname": "a.png", "type": 2, "loc": 1, "src": "a.png"}},
        "view": {"1": {"fid_list": ["1"]}},
        "metadata": {str(i): {"vid": "1", "z": [], "xy": xy, "av": {"1": "0"}} for i, xy in enumerate(shapes)},
    }


def test_a_project_of_via_3(tmp_path):
    paint(tmp_path / "a.png")
    shapes = [
        [2, *SQUARE],
        [3, 20, 15, 10],
        [4, 20, 15, 10, 5],
        [7, 1, 1, 31, 1, 31, 21],
        [6, 1, 1, 31, 1, 31, 22],
        [1, 3, 3],
        [],
    ]
    write(tmp_path / "project.json", json.dumps(third(shapes)))
    found = annotations.open(tmp_path)
    assert (found.kind, found.classes) == ("via", ("cat",))
    expected = [[5, 5, 25, 25], [10, 5, 30, 25], [10, 10, 30, 20], [1, 1, 31, 21], [1, 1, 31, 22]]
    np.testing.assert_allclose(found.records[0].boxes, expected, atol=1e-3)
    assert faults(found) == [("region 6 (cat)", "degenerate")]  # the point
    assert [shape is not None for shape in found.records[0].shapes] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("shape", "box", "area"),
    [
        ({"name": "polygon", "all_points_x": [5, 25, 25, 5], "all_points_y": [5, 5, 25, 25]}, [5, 5, 25, 25], 400),
        ({"name": "polyline", "all_points_x": [5, 25], "all_points_y": [5, 15]}, [5, 5, 25, 15], None),
        ({"name": "circle", "cx": 20, "cy": 20, "r": 10}, [10, 10, 30, 30], np.pi * 100),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 20, "ry": 10}, [10, 10, 50, 30], np.pi * 200),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 20, "ry": 10, "theta": np.pi / 2}, [20, 0, 40, 40], np.pi * 200),
    ],
)
def test_shapes_of_via_have_boxes_around_them_and_masks(tmp_path, shape, box, area):
    paint(tmp_path / "a.png")
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}}]
    write(tmp_path / "via.json", json.dumps({"a": {"filename": "a.png", "regions": regions}}))
    (record,) = annotations.open(tmp_path).records
    np.testing.assert_allclose(record.boxes, [box], atol=1e-3)
    (outline,) = record.shapes
    if area is None:
        assert outline is None
    else:
        mask = masks.rasterize(outline, HEIGHT, WIDTH)
        assert mask.shape == (HEIGHT, WIDTH)
        assert mask.sum() == pytest.approx(area, rel=0.02)
        ys, xs = np.nonzero(mask)
        np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=1)


@pytest.mark.parametrize(
    "shape",
    [
        {"name": "polygon", "all_points_x": [5, 25, 25], "all_points_y": [5, 5]},
        {"name": "polygon", "all_points_x": "123", "all_points_y": "456"},
        {"name": "circle", "cx": 20, "cy": 20, "r": "wide"},
        {"name": "ellipse", "cx": 1e308, "cy": 1e308, "rx": 1e308, "ry": 1e308, "theta": 1},
        {"name": "star"},
    ],
)
def test_one_shape_that_cannot_be_read_is_a_fault_of_its_own(tmp_path, shape):
    paint(tmp_path / "a.png")
    rect = {"name": "rect", **dict(zip(("x", "y", "width", "height"), SQUARE, strict=True))}
    regions = [{"shape_attributes": each, "region_attributes": {"class": "cat"}} for each in (rect, shape)]
    write(tmp_path / "via.json", json.dumps({"a": {"filename": "a.png", "regions": regions}}))
    found = annotations.open(tmp_path)
    assert len(found.records[0].boxes) == 1
    assert faults(found) == [("region 2 (cat)", "unreadable")]


def test_masks_of_polygons_by_hand():
    triangle = masks.rasterize((((0.0, 0.0), (4.0, 0.0), (0.0, 4.0)),), 4, 5)
    assert triangle.astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    left, right = (((x, 0.0), (x + 2, 0.0), (x + 2, 1.0), (x, 1.0)) for x in (0.0, 3.0))
    assert masks.rasterize((left, right), 2, 4).astype(int).tolist() == [[1, 1, 0, 1], [0, 0, 0, 0]]
    ring = masks.rasterize((((0.0, 0.0), (3.0, 0.0), (3.0, 3.0), (0.0, 3.0)),), 3, 3)
    assert ring.all()


def test_run_length_codes_are_those_of_pycocotools():
    large = np.zeros((12, 17), bool)
    large[2:9, 3:12] = large[4:6, 3:16] = large[10:, 15:] = True
    found = masks.from_coco({"size": [12, 17], "counts": "V1750000000000000002K300000J060"})
    np.testing.assert_array_equal(masks.rasterize(found, 12, 17), large)
    small = masks.from_coco({"size": [9, 7], "counts": "031N011OO110O33NM00N71I21M012"})
    rows = ["1000111", "1111010", "1011000", "0111011", "1110011", "0011010", "1001010", "1101000", "0100000"]
    np.testing.assert_array_equal(masks.rasterize(small, 9, 7), np.array([[c == "1" for c in row] for row in rows]))
    assert masks.from_coco({"size": [2, 2], "counts": [1, 2, 1]}) == Runs((2, 2), (1, 2, 1))
    with pytest.raises(ValueError, match="for an image of"):
        masks.rasterize(Runs((2, 2), (1, 2, 1)), 3, 2)


def test_outlines_of_coco_are_kept(tmp_path):
    paint(tmp_path / "a.png")
    outlines = [
        [[5, 5, 25, 5, 25, 25]],
        [5, 5, 25, 5, 25, 25, 5, 25],
        {"size": [HEIGHT, WIDTH], "counts": [0, 2400]},
        [],
        "x",
    ]
    objects = [(0, 1, {"segmentation": each, "bbox": [5 + i, 5, 20, 20]}) for i, each in enumerate(outlines)]
    coco(tmp_path / "a.json", [(0, "a.png")], objects)
    areas = [
        shape and int(masks.rasterize(shape, HEIGHT, WIDTH).sum())
        for shape in annotations.open(tmp_path).records[0].shapes
    ]
    assert areas == [190, 400, 2400, None, None]


# ---- YOLO ----


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "{1: dog, 0: cat}"])
def test_the_layout_of_ultralytics(tmp_path, names):
    root = tmp_path / "coco8"
    for split in ("train", "val"):
        paint(root / "images" / split / "a.png")
        paint(root / "images" / split / "background.png")
        write(root / "labels" / split / "a.txt", f"{YOLO}1 0.1 0.1 0.9 0.1 0.9 0.9\n\n")
    write(root / "coco8.yaml", f"path: coco8\ntrain: images/train\nval: images/val\nnames: {names}\n")
    found = annotations.open(root, "valid")
    assert found.classes == ("cat", "dog")
    assert [(record.path.parent.name, len(record.boxes)) for record in found.records] == [("val", 2), ("val", 0)]
    np.testing.assert_allclose(found.records[0].boxes, [[5, 5, 25, 25], [6, 4, 54, 36]], atol=1e-3)
    assert masks.rasterize(found.records[0].shapes[1], HEIGHT, WIDTH).sum() == pytest.approx(48 * 32 / 2, rel=0.05)
    assert len(annotations.open(root / "coco8.yaml").records) == 4
    with pytest.raises(NoSplitError, match="no split 'test'; splits there: train, val"):
        annotations.open(root, "test")


def test_folders_of_splits_within_images(tmp_path):
    for split in ("train", "val"):
        paint(tmp_path / "images" / split / f"{split}.png")
        write(tmp_path / "labels" / split / f"{split}.txt", YOLO)
    write(tmp_path / "classes.txt", "cat")
    for split in ("train", "valid"):
        (record,) = annotations.open(tmp_path, split).records
        assert record.path.stem == {"valid": "val"}.get(split, split)
    assert set(catalog.open_annotated(tmp_path)) == {"train", "valid"}
    with pytest.raises(NoSplitError, match="no folder of the split 'test'; folders there: train, val"):
        annotations.open(tmp_path, "test")


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nc: 3\nnames: [cat]", "nc is 3, but 1 classes have names: correct one of the two"),
        ("names: [no, yes]", "a name of a class is a bool; expected one word: write it in quotes"),
        (f"{BOMB}names: *a11", "a name of a class is a list"),
        (f"{BOMB}names: {{1: *a11}}", "expected as a list, or numbered from 0$"),
        (f"{BOMB}names: [cat]\npath: *a11", "path is a list"),
        (f"{BOMB}names: [cat]\nnc: *a11", "nc is a list"),
        (f"{BOMB}names: [cat]\nval: *a11", "val is a list"),
    ],
)
def test_a_yaml_file_that_cannot_be_meant_so_is_one_short_line(tmp_path, text, error):
    """BOMB stands for 10¹² words in twelve lines."""
    paint(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", YOLO)
    write(tmp_path / "data.yaml", f"train: images\n{text}\n")
    with pytest.raises(UserError, match=error) as raised:
        annotations.open(tmp_path)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("file", ["classes.txt", "labels/classes.txt", "my.names"])
def test_images_beside_labels_with_a_list_of_names(tmp_path, file):
    paint(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", YOLO)
    with pytest.raises(UserError, match=r"no names of the classes: add .*classes\.txt"):
        annotations.open(tmp_path)
    write(tmp_path / file, "cat\n\n")
    assert annotations.open(tmp_path).classes == ("cat",)
    write(tmp_path / "labels" / "a.txt", f"{YOLO}cat 1 2 3 4\n0 0.5 0.5\n0 nan 0.5 0.1 0.1\n")
    found = annotations.open(tmp_path)
    assert faults(found) == [(f"line {i}", "unreadable") for i in (2, 3, 4)]
    write(tmp_path / "labels" / "a.txt", "3 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match=r"a\.txt, line 1: class 3, but .* names 1 classes: add the names"):
        annotations.open(tmp_path)


def test_an_error_of_nothing_left_names_the_commonest_faults(tmp_path):
    coco(tmp_path / "a.json", [(i, f"{i}.png") for i in range(5)], [(0, 1, {})])
    content = json.loads((tmp_path / "a.json").read_text())
    for image in content["images"]:
        del image["width"]
    write(tmp_path / "a.json", json.dumps(content))
    with pytest.raises(UserError, match=r"no picture with annotations is left: 5 × missing picture, such as .*0\.png"):
        annotations.open(tmp_path)


# ---- damage ----


def test_numbers_beyond_reason(tmp_path):
    """A picture of 10³⁰⁰ pixels would have infinite boxes; a text of four digits is no box."""
    paint(tmp_path / "a.png")
    content = json.loads(
        coco(tmp_path / "a.json", [(0, "a.png")], [(0, 1, {"bbox": [0, 0, 1e299, 1e299]})]).read_text()
    )
    write(tmp_path / "a.json", json.dumps({**content, "images": [{**content["images"][0], "width": 1e300}]}))
    with pytest.raises(UserError, match=r"no picture with annotations is left: 1 × size, such as 1e\+300×40 pixels"):
        annotations.open(tmp_path)
    coco(tmp_path / "a.json", [(0, "a.png")], [(0, 1, {"bbox": "1234"}), (0, 1, {"bbox": ["x" * 10000]})])
    found = annotations.open(tmp_path)
    assert faults(found) == [(f"annotation {i} (cat)", "unreadable") for i in (0, 1)]
    assert max(len(fault.what) for fault in found.faults) < 200


@pytest.mark.parametrize("odd", [1e308, float("nan"), "x", None])
def test_a_polygon_with_a_number_that_is_none_is_no_outline(odd):
    assert masks.from_coco([[5, 5, 9, 5, 9, odd]]) is None
    (left,) = masks.from_coco([[5, 5, 9, 5, 9, odd], [5, 5, 9, 5, 9, 9.25]])
    assert left.tolist() == [[5, 5], [9, 5], [9, 9.25]]


@pytest.mark.parametrize("text", ["o" * 400_000, "~", "!", "o"])
def test_a_damaged_run_length_code_is_refused_at_once(text):
    with pytest.raises(ValueError, match="run-length code"):
        masks.decoded(text)


def samples(root):
    """Writes a small data set of every format; returns the annotation file to damage and what to open, by format."""
    paint(root / "coco" / "a.png")
    paint(root / "via" / "a.png")
    paint(root / "via3" / "a.png")
    paint(root / "csv" / "a.png")
    paint(root / "voc" / "a.png")
    paint(root / "yolo" / "images" / "a.png")
    shape = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "031N011OO110O33NM00N71I21M012"}}
    polygon = {"segmentation": [[5, 5, 9, 5, 9, 9]]}
    region = {"shape_attributes": {"name": "circle", "cx": 20, "cy": 20, "r": 9}, "region_attributes": {"class": "cat"}}
    shapes = json.dumps(region["shape_attributes"]).replace('"', '""')
    files = {
        "coco": coco(root / "coco" / "a.json", [(0, "a.png")], [(0, 1, shape), (0, 2, polygon)]),
        "via": write(root / "via" / "a.json", json.dumps({"a": {"filename": "a.png", "regions": [region]}})),
        "via3": write(root / "via3" / "a.json", json.dumps(third([[2, *SQUARE], [7, 1, 1, 31, 1, 31, 21]]))),
        "csv": write(
            root / "csv" / "a.csv",
            f'filename,region_shape_attributes,region_attributes\na.png,"{shapes}","{{""class"": ""cat""}}"\n',
        ),
        "voc": write(root / "voc" / "a.xml", VOC.format(name="a.png")),
        "yolo": write(root / "yolo" / "labels" / "a.txt", YOLO * 2),
        "yaml": write(root / "yolo" / "data.yaml", "train: images\nnames: [cat]\n"),
    }
    return {kind: (file, root / ("yolo" if kind == "yaml" else kind)) for kind, file in files.items()}


PIECES = [
    *(b"", b"null", b"1e999", b"-1", b"9" * 400, b"NaN", b"Infinity", b'"\\ud800"', b"\xed\xa0\x80", b"\xff\x00"),
    *(b"[[[[" * 500, b"{}", b"[]", b'"a"', b"true", b"0", b"1.5", b"..\\..\\x", b"<a>" * 300, b"&#0;", b"&x;"),
    *(b"!!python/object:os.system x", b"&a [*a]", b"\n", b"9" * 5000, b"x" * 10000, b'{"id": {"a": []}}'),
    *(b"\xef\xbb\xbf", b"-0.0", b"2147483648", b"1e308"),
]


def mutated(rng, content):
    """Content with one to three changes: cut, overwritten, doubled, or with a token replaced by something odd."""
    for _ in range(rng.randint(1, 3)):
        start, size = rng.randrange(len(content) + 1), rng.choice([0, 1, 1, 4, 20])
        kind = rng.randrange(5)
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + bytes(rng.randrange(256) for _ in range(size)) + content[start + size :]
        elif kind == 2:
            content = content[:start] + content[start : start + size] * 2 + content[start + size :]
        else:
            ends = [i for i, byte in enumerate(content) if byte in b' ,:[]{}"<>\n'] or [0]
            i = rng.randrange(len(ends))
            stop = ends[i + 1] if i + 1 < len(ends) else len(content)
            content = content[: ends[i] + 1] + rng.choice(PIECES) + content[stop:]
    return content


def replace(file, content):
    """Writes a file anew: truncating one makes ext4 wait for the disk."""
    file.unlink()
    file.write_bytes(content)


def test_two_thousand_damaged_files_give_a_result_or_one_line(tmp_path):
    rng, chosen = random.Random(0), samples(tmp_path)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 2**20  # in KiB: 1 GiB more than before
    whole = {kind: file.read_bytes() for kind, (file, _) in chosen.items()}
    for kind, (_, path) in chosen.items():
        assert len(annotations.open(path).records) == 1, kind
    outcomes = {kind: set() for kind in chosen}
    for i in range(2000):
        kind = list(chosen)[i % len(chosen)]
        file, path = chosen[kind]
        replace(file, content := mutated(rng, whole[kind]))
        began = time.perf_counter()
        try:
            found = annotations.open(path)
            for record in found.records:
                assert np.isfinite(record.boxes).all(), content
            outcomes[kind].add("result")
        except UserError as error:
            outcomes[kind].add("error" if len(str(error).splitlines()) == 1 else f"several lines for {content!r}")
        assert time.perf_counter() - began < 1, content
        replace(file, whole[kind])
    assert all(each == {"result", "error"} for each in outcomes.values())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most
