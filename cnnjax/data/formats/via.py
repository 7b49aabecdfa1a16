"""VGG Image Annotator (VIA) 1 and 2: a JSON of annotations, a whole project, or a CSV."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cnnjax.data.formats import annotated
from cnnjax.data.formats.annotated import AnnotatedImage, Labelled, Read
from cnnjax.types import UserError

EXPECTED = "a JSON or CSV (VGG Image Annotator)"


def read_annotations(path: Path, split: str | None) -> Read | None:
    """Reads rectangles, whose class is in a region attribute.

    That attribute is the only one, or the one called class, label, category, name or type. If it is a checkbox, the
    ticked option is the class.

    Raises:
      UserError: the file is not built like VIA's, nothing says which attribute holds the class, or it is not clear
        which file is meant.
    """
    file = annotated.table_file(path, split)
    if file is None:
        return None
    entries = _csv_entries(file) if file.suffix.lower() == ".csv" else _json_entries(annotated.json_content(file))
    if entries is None:
        return None
    try:
        found = [(str(each["filename"]), _regions(each)) for each in entries]
        key = _class_attribute([region for _, regions in found for region in regions], file)
        folder = annotated.image_folder(file, [name for name, _ in found])
        images = [_image(folder / name, name, regions, key) for name, regions in found]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: not an export of VGG Image Annotator ({annotated.reason(error)}): export it again"
        ) from error
    return Read(images, annotated.class_names(images))


def _image(path: Path, name: str, regions: Iterable[Mapping[str, Any]], key: str) -> AnnotatedImage:
    return AnnotatedImage(name, path, path, None, [_object(region, i, key) for i, region in enumerate(regions, 1)])


def _json_entries(content: Any) -> list[Mapping[str, Any]] | None:
    """Entries of the images in a VIA JSON (annotations, or a whole project); None if it is something else."""
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    known = all(isinstance(each, dict) and {"filename", "regions"} <= each.keys() for each in entries)
    return entries if entries and known else None


def _csv_entries(file: Path) -> list[Mapping[str, Any]] | None:
    """Entries of the images in a VIA CSV, which has a row for each region; None if it is another table."""
    entries: dict[str, dict[str, Any]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                row = {str(key).lstrip("#"): value for key, value in row.items()}
                if not {"filename", "region_shape_attributes", "region_attributes"} <= row.keys():
                    return None
                entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
                shape = json.loads(row["region_shape_attributes"])
                if shape:  # an image without regions has a row of empty ones
                    attributes = json.loads(row["region_attributes"])
                    entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{file}: a damaged table of VGG Image Annotator ({error}): export it again") from error
    return list(entries.values())


def _regions(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    regions = entry["regions"]
    return list(regions.values() if isinstance(regions, dict) else regions)


def _class_attribute(regions: Iterable[Mapping[str, Any]], file: Path) -> str:
    names = sorted({key for region in regions for key in region["region_attributes"]})
    usual = [name for want in ("class", "label", "category", "name", "type") for name in names if name.lower() == want]
    if len(names) > 1 and not usual:
        raise UserError(
            f"{file}: which region attribute of {names} is the class? Call that one 'class' in the annotator"
        )
    return names[0] if len(names) == 1 else [*usual, ""][0]


def _object(region: Mapping[str, Any], place: int, key: str) -> Labelled:
    value, shape = region["region_attributes"].get(key, ""), region["shape_attributes"]
    ticked = [name for name, on in value.items() if on] if isinstance(value, dict) else [value]
    label = str(ticked[0]).strip() if len(ticked) == 1 else ""
    name = f"region {place} ({label})"
    if shape.get("name") != "rect":
        return Labelled(name, label, fault=("unreadable", f"a {shape.get('name')}, not a rect"))
    box = annotated.from_xywh([shape.get(side) for side in ("x", "y", "width", "height")])
    return Labelled(name, label, box) if box else Labelled(name, label, fault=("unreadable", "no four numbers"))
