"""VGG Image Annotator (VIA) 1, 2 and 3: a JSON of annotations, a whole project, or a CSV."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data.formats import annotated, masks
from cnnjax.data.formats.annotated import AnnotatedImage, Box, Labelled, Polygon, Read
from cnnjax.types import UserError

EXPECTED = "a JSON or CSV (VGG Image Annotator)"


def read_annotations(path: Path, split: str | None) -> Read | None:
    """Reads rectangles and, as the boxes around them, polygons, lines, circles, ellipses and points.

    The class is in a region attribute: the only one, or the one called class, label, category, name or type. If it is a
    checkbox, the ticked option is the class.

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
        paths, moved = annotated.image_paths(file, [name for name, _ in found])
        images = [_image(path, *each, key) for path, each in zip(paths, found, strict=True)]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: not an export of VGG Image Annotator ({annotated.reason(error)}): export it again"
        ) from error
    return Read(images, annotated.class_names(images), tuple(moved))


def _image(path: Path, name: str, regions: Iterable[Mapping[str, Any]], key: str) -> AnnotatedImage:
    return AnnotatedImage(name, path, path, None, [_object(region, i, key) for i, region in enumerate(regions, 1)])


def _json_entries(content: Any) -> list[Mapping[str, Any]] | None:
    """Entries of the images in a VIA JSON (annotations, or a whole project); None if it is something else."""
    if isinstance(content, dict) and {"project", "file", "view", "metadata", "attribute"} <= content.keys():
        return _third(content)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    known = all(isinstance(each, dict) and {"filename", "regions"} <= each.keys() for each in entries)
    return entries if entries and known else None


def _third(content: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Entries as of VIA 2 from a project of VIA 3, which lists files, views of files, and shapes in views."""
    try:
        attributes = {key: (each["aname"], each.get("options") or {}) for key, each in content["attribute"].items()}
        entries = {key: {"filename": each["src"], "regions": []} for key, each in content["file"].items()}
        for each in content["metadata"].values():
            if not each["xy"]:  # a remark on the whole file, or a part of a video
                continue
            (file,) = content["view"][each["vid"]]["fid_list"]
            values = {}
            for key, value in each["av"].items():
                name, options = attributes[key]
                values[name] = options.get(value, value)
            entries[str(file)]["regions"].append({"shape_attributes": _shape(each["xy"]), "region_attributes": values})
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return list(entries.values())


_THIRD = {
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    1: ("point", ("cx", "cy")),
}
_OUTLINES = {5: "polyline", 6: "polyline", 7: "polygon", 8: "polyline"}  # a line, lines, corners, the four extremes


def _shape(xy: Sequence[Any]) -> dict[str, Any]:
    """Shape of VIA 3 (kind, then numbers) with the names of VIA 2."""
    kind, *numbers = xy
    if kind in _THIRD:
        name, keys = _THIRD[kind]
        return {"name": name, **dict(zip(keys, numbers, strict=False))}
    if kind not in _OUTLINES:
        return {"name": f"shape of kind {kind!s:.20}"}
    return {"name": _OUTLINES[kind], "all_points_x": numbers[::2], "all_points_y": numbers[1::2]}


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
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
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
    box, polygon = _box(shape)
    if box is None or not all(map(math.isfinite, box)):
        return Labelled(name, label, fault=("unreadable", f"a {shape.get('name')} without the numbers it needs"))
    return Labelled(name, label, box, shape=None if polygon is None else (polygon,))


def _box(shape: Mapping[str, Any]) -> tuple[Box | None, Polygon | None]:
    """Box around a shape, and its outline where it has one."""
    kind = shape.get("name")
    if kind == "rect":
        return annotated.from_xywh([shape.get(side) for side in ("x", "y", "width", "height")]), None
    if kind in ("circle", "ellipse"):
        radii = ("r", "r") if kind == "circle" else ("rx", "ry")
        numbers = _numbers([*(shape.get(name) for name in ("cx", "cy", *radii)), shape.get("theta") or 0])
        outline = masks.ellipse(*numbers) if numbers else None
        return None if outline is None else masks.box([outline]), outline
    if kind == "point":
        x, y = _numbers([shape.get("cx"), shape.get("cy")]) or (math.nan, math.nan)
        return (x, y, x, y), None  # without area: a fault that names it
    xs, ys = _numbers(shape.get("all_points_x") or ()), _numbers(shape.get("all_points_y") or ())
    if len(xs) != len(ys):
        return None, None
    corners = np.array([xs, ys]).T
    return masks.box([corners]), masks.polygon(corners.ravel().tolist()) if kind == "polygon" and len(
        corners
    ) > 2 else None


def _numbers(values: Any) -> tuple[float, ...]:
    """Numbers, or nothing where one is none or not finite."""
    numbers = annotated.numbers(values)
    return numbers if all(map(math.isfinite, numbers)) else ()
