"""COCO: one JSON file for all images of a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnjax.data.formats import annotated
from cnnjax.data.formats.annotated import AnnotatedImage, Labelled, Read
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
    categories = sorted(content["categories"], key=lambda each: each["id"])
    names = {each["id"]: str(each["name"]) for each in categories}
    images = {each["id"]: each for each in content["images"]}
    found: dict[Any, list[Labelled]] = {key: [] for key in images}
    lost = []
    for each in content["annotations"]:
        labelled = _object(each, names)
        if each["image_id"] in found:
            found[each["image_id"]].append(labelled)
        else:
            what = f"of image {each['image_id']}, which the file does not list"
            lost.append(annotated.Fault(file, labelled.name, "no picture listed", what))
    folder = annotated.image_folder(file, [str(each["file_name"]) for each in images.values()])
    paths = {key: folder / each["file_name"] for key, each in images.items()}
    read = [AnnotatedImage(key, paths[key], paths[key], _size(each), found[key]) for key, each in images.items()]
    return Read(read, tuple(names.values()), tuple(lost))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    return (width, height) if width > 0 and height > 0 else None


def _object(each: Mapping[str, Any], names: Mapping[Any, str]) -> Labelled:
    label = names.get(each["category_id"], "")
    name = f"annotation {each.get('id')} ({label or each['category_id']})"
    box = annotated.from_xywh(each.get("bbox"))
    if box is None:
        return Labelled(name, label, fault=("unreadable", f"no bbox of four numbers, but {each.get('bbox')}"))
    return Labelled(name, label, box, crowd=bool(each.get("iscrowd")))
