"""What annotation files say, as they say it: Pascal VOC, COCO and VGG Image Annotator; `annotations` judges it."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import ExifTags, Image

from cnnjax.data.sources import SUFFIXES
from cnnjax.types import UserError

Box = tuple[float, float, float, float]


class Labelled(NamedTuple):
    """One object of a picture: xyxy in pixels; ``fault`` (kind, what) says what makes it unusable."""

    name: str
    label: str
    box: Box = (0, 0, 0, 0)
    difficult: bool = False
    crowd: bool = False
    fault: tuple[str, str] | None = None


class Picture(NamedTuple):
    """One picture; ``file`` is where its faults are put right, ``size`` (width, height) None where it is not said."""

    id: str | int
    file: Path
    path: Path
    size: tuple[int, int] | None
    objects: list[Labelled]


@dataclass(frozen=True)
class Read:
    """What a reader found: pictures, class names in the order of their labels, and (file, object, what) besides."""

    pictures: list[Picture]
    classes: tuple[str, ...]
    faults: tuple[tuple[Path, str, str], ...] = ()


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as viewers show the picture, from its header; None if there is none."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # PIL raises every kind for damaged files
        return None


# ---- Pascal VOC ----


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Entities are declared there, and a few lines of them grow to gigabytes.
        raise ValueError("it has a DOCTYPE, which no annotation needs and which can exhaust the memory")


def voc(folder: Path) -> Read:
    """Reads ``Annotations/*.xml`` with the pictures in ``JPEGImages``, or xml files beside their pictures.

    A picture is the one with the xml's name, else the one its ``filename`` says. VOC counts pixels from 1 and includes
    the last: (1, 1, w, h) is all of a picture, and here (0, 0, w, h).

    Raises:
      UserError: xml that cannot be read, counting the files and naming the first.
    """
    notes = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    images = next((p for p in (folder / "JPEGImages", folder / "images") if p.is_dir()), folder)
    files = sorted(path for path in notes.glob("*.xml") if not path.name.startswith("."))
    pool = _Pool(images)
    pictures, errors = [], []
    for file in files:
        try:
            pictures.append(_voc_picture(file, pool))
        except (ElementTree.ParseError, ArithmeticError, LookupError, OSError, ValueError) as error:
            errors.append(f"{file}: not an annotation of Pascal VOC ({error}): label its picture again, or remove it")
    if errors:
        raise UserError(f"{errors[0]}; {len(errors)} of {len(files)} such files")
    return Read(pictures, tuple(sorted({each.label for p in pictures for each in p.objects if each.label})))


class _Pool:
    """The pictures in a folder, by name and by name without ending."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Path] = {}
        self.stems: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                self.names[path.name] = path
                self.stems.setdefault(path.stem, path)

    def find(self, stem: str, name: str) -> Path:
        said = self.names.get(name)
        if said is not None and said.stem == stem:
            return said
        return self.stems.get(stem) or said or self.folder / (name or f"{stem}.jpg")


def _voc_picture(file: Path, pool: _Pool) -> Picture:
    root = ElementTree.parse(file, ElementTree.XMLParser(target=_Tree())).getroot()
    if root.tag != "annotation":
        raise ValueError(f"expected <annotation>, got <{root.tag}>")
    said = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    size = (width, height) if width > 0 and height > 0 else None
    objects = [_voc_object(each, i) for i, each in enumerate(root.findall("object"), 1)]
    return Picture(file.stem, file, pool.find(file.stem, said), size, objects)


def _voc_object(element: ElementTree.Element, place: int) -> Labelled:
    label = (element.findtext("name") or "").strip()
    name = f"object {place} ({label})"
    try:
        corners = [float(element.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        return Labelled(name, label, fault=("unreadable", "no bndbox of four numbers"))
    left, top, right, bottom = corners
    # One pixel to the letter, a slip of the mouse in fact: nobody labels an object of one pixel.
    if right <= left or bottom <= top:
        return Labelled(name, label, fault=("degenerate", f"xmin ymin xmax ymax {_numbers(corners)}"))
    difficult = (element.findtext("difficult") or "").strip() == "1"
    return Labelled(name, label, (left - 1, top - 1, right, bottom), difficult)


# ---- COCO ----


def coco(content: Mapping[str, Any], file: Path) -> Read:
    """Reads the content of a COCO JSON file; labels are the places of ``categories`` by rising id, boxes 0-based xywh.

    The pictures lie in a folder called like the end of the file's name (``instances_val2017.json``: ``val2017``), in
    ``images``, or beside the file; looked for there and one folder up.

    Raises:
      UserError: the file is not built like COCO's.
    """
    try:
        categories = sorted(content["categories"], key=lambda each: each["id"])
        names = {each["id"]: str(each["name"]) for each in categories}
        images = {each["id"]: each for each in content["images"]}
        found: dict[Any, list[Labelled]] = {key: [] for key in images}
        lost = []
        for each in content["annotations"]:
            labelled = _coco_object(each, names)
            if each["image_id"] in found:
                found[each["image_id"]].append(labelled)
            else:
                lost.append((file, labelled.name, f"of image {each['image_id']}, which the file does not list"))
        folder = _folder(file, [str(each["file_name"]) for each in images.values()])
        pictures = [
            Picture(key, folder / each["file_name"], folder / each["file_name"], _size(each), found[key])
            for key, each in images.items()
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not COCO's JSON of objects ({_reason(error)}): export it again") from error
    if len(images) < len(content["images"]):
        raise UserError(f"{file}: an image id occurs twice: {len(content['images'])} images, {len(images)} ids")
    return Read(pictures, tuple(names.values()), tuple(lost))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    return (width, height) if width > 0 and height > 0 else None


def _coco_object(each: Mapping[str, Any], names: Mapping[Any, str]) -> Labelled:
    label = names.get(each["category_id"], "")
    name = f"annotation {each.get('id')} ({label or each['category_id']})"
    box = _xywh(each.get("bbox"))
    if box is None:
        return Labelled(name, label, fault=("unreadable", f"no bbox of four numbers, but {each.get('bbox')}"))
    return Labelled(name, label, box, crowd=bool(each.get("iscrowd")))


def _folder(file: Path, names: Iterable[str]) -> Path:
    """Where the first picture that is found at all lies."""
    end = file.stem.rpartition("_")[2]
    folders = [base / below for base in (file.parent, file.parent.parent) for below in (end, "images", "")]
    folders += [file.parent.parent / "images" / end]
    for name in [*names][:20]:
        for folder in folders:
            if (folder / name).is_file():
                return folder
    return file.parent.parent / end if file.parent.name == "annotations" else file.parent


# ---- VGG Image Annotator ----


def via(content: Iterable[Mapping[str, Any]], file: Path) -> Read:
    """Reads what VIA 1 and 2 export, see `via_entries`: rectangles, whose class is in a region attribute.

    That attribute is the only one, or the one called class, label, category, name or type. Of a checkbox the one ticked
    counts. Pictures lie beside the file or in ``images``.

    Raises:
      UserError: the file is not built like VIA's, or nothing says which attribute holds the class.
    """
    try:
        entries = [(str(each["filename"]), _regions(each)) for each in content]
        key = _class_attribute([region for _, regions in entries for region in regions], file)
        folder = _folder(file, [name for name, _ in entries])
        pictures = [
            Picture(
                name, folder / name, folder / name, None, [_via_object(r, i, key) for i, r in enumerate(regions, 1)]
            )
            for name, regions in entries
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not an export of VGG Image Annotator ({_reason(error)}): export it again") from error
    return Read(pictures, tuple(sorted({each.label for p in pictures for each in p.objects if each.label})))


def via_entries(content: Any) -> list[Mapping[str, Any]] | None:
    """The pictures in a VIA JSON (annotations, or a whole project); None if it is something else."""
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    return (
        entries
        if entries and all(isinstance(e, dict) and {"filename", "regions"} <= e.keys() for e in entries)
        else None
    )


def via_table(file: Path) -> list[Mapping[str, Any]] | None:
    """The pictures in a VIA CSV, a row of which is a region; None if it is another table.

    Raises:
      UserError: a cell is damaged.
    """
    entries: dict[str, dict[str, Any]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                row = {str(key).lstrip("#"): value for key, value in row.items()}
                if not {"filename", "region_shape_attributes", "region_attributes"} <= row.keys():
                    return None
                entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
                shape = json.loads(row["region_shape_attributes"])
                if shape:  # a picture without regions has a row of empty ones
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


def _via_object(region: Mapping[str, Any], place: int, key: str) -> Labelled:
    value, shape = region["region_attributes"].get(key, ""), region["shape_attributes"]
    ticked = [name for name, on in value.items() if on] if isinstance(value, dict) else [value]
    label = str(ticked[0]).strip() if len(ticked) == 1 else ""
    name = f"region {place} ({label})"
    if shape.get("name") != "rect":
        return Labelled(name, label, fault=("unreadable", f"a {shape.get('name')}, not a rect"))
    box = _xywh([shape.get(side) for side in ("x", "y", "width", "height")])
    return Labelled(name, label, box) if box else Labelled(name, label, fault=("unreadable", "no four numbers"))


# ---- all ----


def _xywh(values: Any) -> Box | None:
    """Corner, width, height → xyxy; None unless they are four numbers."""
    try:
        x, y, width, height = map(float, values)
    except (TypeError, ValueError):
        return None
    return x, y, x + width, y + height


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
