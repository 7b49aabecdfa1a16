"""COCO: one JSON file for all images of a split."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from cnnjax.data.formats import annotated, masks
from cnnjax.data.formats.annotated import AnnotatedImage, Fault, Labelled, Read
from cnnjax.types import UserError

EXPECTED = "annotations/*.json (COCO: images, annotations)"


def read_annotations(path: Path, split: str | None) -> Read | None:
    """Reads a COCO JSON file; labels are the places of ``categories`` by rising id, boxes 0-based xywh.

    Raises:
      UserError: the file is not built like COCO's, or it is not clear which file is meant.
    """
    file = annotated.table_file(path, split)
    content = None if file is None or file.suffix.lower() == ".csv" else annotated.json_content(file)
    if file is None or not (isinstance(content, dict) and "images" in content and "annotations" in content):
        return None
    try:
        read = _read(content, file)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not COCO's JSON of objects ({annotated.reason(error)}): export it again") from error
    if len(read.images) < len(content["images"]):
        raise UserError(f"{file}: an image id occurs twice: {len(content['images'])} images, {len(read.images)} ids")
    return read


def _read(content: Mapping[str, Any], file: Path) -> Read:
    names, faults = _categories(content, file)
    images = {_key(each["id"]): each for each in content["images"]}
    found: dict[Any, list[Labelled]] = {key: [] for key in images}
    for each in content["annotations"]:
        labelled, image = _object(each, names), _key(each["image_id"])
        if image in found:
            found[image].append(labelled)
        else:
            what = f"of image {image}, which the file does not list"
            faults.append(Fault(file, labelled.name, "no picture listed", what))
    paths, moved = annotated.image_paths(file, [str(each["file_name"]) for each in images.values()])
    each_image = zip(images.items(), paths, strict=True)
    read = [AnnotatedImage(key, path, path, _size(each), found[key]) for (key, each), path in each_image]
    return Read(read, tuple(dict.fromkeys(names.values())), (*faults, *moved))


def _key(value: Any) -> int | str:
    """Id as a number where it is one: VIA writes "7", some programs 7.0."""
    try:
        number = float(value)
        return int(number) if number == int(number) else str(value)
    except (ValueError, OverflowError):
        return str(value)


def _categories(content: Mapping[str, Any], file: Path) -> tuple[dict[int | str, str], list[Fault]]:
    """Names of the categories by id, by rising id, and what is wrong with them.

    Roboflow lists its project as a category, over all others and without objects: it is left out. Of several categories
    with one name one class is made.
    """
    listed = {_key(each["id"]): each for each in content["categories"]}
    if len(listed) < len(content["categories"]):
        raise ValueError("a category's id occurs twice")
    used = {_key(each["category_id"]) for each in content["annotations"]}
    above = {str(each.get("supercategory")) for each in listed.values()}
    names: dict[int | str, str] = {}
    faults = []
    for key in sorted(listed, key=lambda key: (isinstance(key, str), key)):
        name = str(listed[key]["name"]).strip()
        if key not in used and name in above:
            faults.append(Fault(file, name, "no class", f"category {key}, which only stands above others"))
            continue
        if name in names.values():
            faults.append(Fault(file, name, "class listed twice", f"category {key} has the name of another"))
        names[key] = name
    return names, faults


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = int(float(image.get("width") or 0)), int(float(image.get("height") or 0))
    return (width, height) if width > 0 and height > 0 else None


def _object(each: Mapping[str, Any], names: Mapping[int | str, str]) -> Labelled:
    label = names.get(_key(each["category_id"]), "")
    name = f"annotation {each.get('id')} ({label or each['category_id']})"
    box = annotated.from_xywh(each.get("bbox"))
    if box is None:
        return Labelled(name, label, fault=("unreadable", f"no bbox of four numbers, but {str(each.get('bbox'))[:80]}"))
    area = annotated.numbers([each.get("area")])
    known = area[0] if area and isfinite(area[0]) and area[0] > 0 else None
    shape = masks.from_coco(each.get("segmentation"))
    return Labelled(name, label, box, crowd=bool(each.get("iscrowd")), shape=shape, area=known)
