"""Pascal VOC, which LabelImg writes too: an XML file for each image."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from cnnjax.data.formats.annotated import AnnotatedImage, Fault, Labelled, NoSplitError, Read, class_names, xml_files
from cnnjax.data.formats.images import is_image
from cnnjax.types import UserError

FOLDERS = ("JPEGImages", "images", "Images", "img")
EXPECTED = "Annotations/*.xml or xml beside the images (Pascal VOC)"


def read_annotations(path: Path, split: str | None) -> Read | None:
    """Reads ``Annotations/*.xml`` with the images in ``JPEGImages``, or xml files beside their images.

    The image of an xml file has its name, or else the name in its ``filename``. VOC counts pixels from 1 and includes
    the last: (1, 1, w, h) is all of an image, which is (0, 0, w, h) here. A split is a list in ``ImageSets/Main``; the
    classes are those of all files.

    Raises:
      NoSplitError: there is no such list.
      UserError: xml that cannot be read, counting the files and naming the first.
    """
    files = xml_files(path)
    if not files:
        return None
    pool = _Pool(next((path / name for name in FOLDERS if (path / name).is_dir()), path))
    found, errors = [], []
    for file in files:
        try:
            found.append(_image(file, pool))
        except (ElementTree.ParseError, ArithmeticError, LookupError, OSError, ValueError) as error:
            errors.append(f"{file}: not an annotation of Pascal VOC ({error}): label its picture again, or remove it")
    if errors:
        raise UserError(f"{errors[0]}; {len(errors)} of {len(files)} such files")
    chosen, faults = (found, []) if split is None else _listed(path, split, found)
    return Read(chosen, class_names(found), tuple(faults))


def _listed(folder: Path, split: str, images: Sequence[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Images of a split, in its order, and the faults of the list."""
    lists = folder / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise NoSplitError(f"{file}: no such list; --split may be one of: {there}")
    known, chosen, faults = {image.id: image for image in images}, {}, []
    for line in filter(None, map(str.strip, file.read_text(encoding="utf-8", errors="replace").splitlines())):
        name = line if line in known else line.split()[0]  # the lists of one class have a second column
        if name in chosen:
            faults.append(Fault(file, name, "listed twice", "in the split"))
        elif name in known:
            chosen[name] = known[name]
        else:
            faults.append(Fault(file, name, "not annotated", f"there is no {name}.xml"))
    return list(chosen.values()), faults


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Entities are declared in it, and a few lines of them can grow to gigabytes.
        raise ValueError("it has a DOCTYPE, which no annotation needs and which can exhaust the memory")


class _Pool:
    """Images in a folder, by name and by name without ending."""

    def __init__(self, folder: Path) -> None:
        paths = [path for path in sorted(folder.iterdir(), reverse=True) if is_image(path)]
        self.folder, self.names, self.stems = folder, {p.name: p for p in paths}, {p.stem: p for p in paths}

    def find(self, stem: str, name: str) -> Path:
        named = self.names.get(name)
        if named is not None and named.stem == stem:
            return named
        return self.stems.get(stem) or named or self.folder / (name or f"{stem}.jpg")


def _image(file: Path, pool: _Pool) -> AnnotatedImage:
    root = ElementTree.parse(file, ElementTree.XMLParser(target=_Tree())).getroot()
    if root.tag != "annotation":
        raise ValueError(f"expected <annotation>, got <{root.tag}>")
    filename = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    size = (width, height) if width > 0 and height > 0 else None
    objects = [_object(each, i) for i, each in enumerate(root.findall("object"), 1)]
    return AnnotatedImage(file.stem, file, pool.find(file.stem, filename), size, objects)


def _object(element: ElementTree.Element, place: int) -> Labelled:
    label = (element.findtext("name") or "").strip()
    name = f"object {place} ({label})"
    try:
        corners = [float(element.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        return Labelled(name, label, fault=("unreadable", "no bndbox of four numbers"))
    left, top, right, bottom = corners
    # Literally a box of one pixel, but nobody labels an object of one pixel: it is a slip of the mouse.
    if right <= left or bottom <= top:
        numbers = " ".join(f"{value:g}" for value in corners)
        return Labelled(name, label, fault=("degenerate", f"xmin ymin xmax ymax {numbers}"))
    difficult = (element.findtext("difficult") or "").strip() == "1"
    return Labelled(name, label, (left - 1, top - 1, right, bottom), difficult)
