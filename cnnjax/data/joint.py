"""Joint sets: images with boxes beside images that only have a label, and classes in a tree (YOLO9000, sec. 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cnnjax import text
from cnnjax.data import annotations, sources
from cnnjax.data.annotations import LabelledImages
from cnnjax.data.formats import split_folders, trees
from cnnjax.data.formats.images import header_size
from cnnjax.data.records import Record
from cnnjax.data.sources import Source
from cnnjax.data.splits import Splits
from cnnjax.types import UserError


@dataclass(frozen=True)
class _Joining:
    """Classes of a joint set, and the records that are changed for it."""

    tree: trees.WordTree | None
    classes: tuple[str, ...]
    places: np.ndarray  # int32: class of the images with boxes → place in ``classes``
    withheld: frozenset[int]  # classes of the images with boxes whose boxes are not used

    def training(self, record: Record) -> Record | None:
        """Record for training: with boxes, or only with the label that all of them have; None if they have several."""
        found = set(record.labels.tolist())
        if not found & self.withheld:
            return replace(record, labels=self.places[record.labels])
        if len(found) > 1:
            return None
        return _with_label_only(record, int(self.places[found.pop()]))

    def validation(self, record: Record) -> Record | None:
        """Record for the choice of the weights: None where it would tell of boxes that are not used."""
        return None if set(record.labels.tolist()) & self.withheld else self.evaluation(record)

    def evaluation(self, record: Record) -> Record:
        """Record with all its boxes."""
        return replace(record, labels=self.places[record.labels])

    def source(self, source: Source, change: Callable[[Record], Record | None], more: Sequence[Record] = ()) -> Source:
        """Source with the changed records, and ``more`` of them."""
        base, places = sources.innermost(source)
        assert isinstance(base, LabelledImages)
        given = [base.annotations.records[place] for place in places]
        kept = tuple(record for each in given if (record := change(each)) is not None)
        parents = self.tree.parents if self.tree else ()
        found = replace(base.annotations, records=(*kept, *more), classes=self.classes, parents=parents)
        return replace(base, annotations=found)


def _with_label_only(record: Record, label: int) -> Record:
    none = np.zeros(0, bool)
    record = replace(record, boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int32), areas=np.zeros(0))
    return replace(record, difficult=none, crowd=none, shapes=(), image_label=label)


def join(
    found: Splits, tree: Path | None = None, labelled: Path | None = None, without_boxes: Sequence[str] = ()
) -> Splits:
    """Splits whose training images have boxes or only a label, in the classes of a tree; prints how many.

    Training images have ``image_label``, −1 where there are boxes. Images with boxes of ``without_boxes`` are not in
    the validation split; the test split stays as it is.

    Args:
      found: images with boxes, of `catalog.load_boxes`.
      tree: file for `trees.read`; its nodes become the classes. None: the classes of both sets.
      labelled: folder with a sub-folder for each class, of images without boxes; only its training split is used.
      without_boxes: classes whose training images give only their label; those that show other classes too are left
        out.

    Raises:
      UserError: as `trees.read` and `split_folders.find`; a class that is not there.
    """
    boxed = found.train.classes
    if unknown := [name for name in without_boxes if name not in boxed]:
        raise UserError(f"--without-boxes {' '.join(unknown)}: the classes are {', '.join(boxed)}")
    folder = next(iter(split_folders.open_parts(split_folders.find(labelled)).values())) if labelled else None
    names = tuple(dict.fromkeys([*boxed, *(folder.classes if folder else ())]))
    known = trees.read(tree, names) if tree else None
    labels = known.labels if known else lambda classes: [names.index(name) for name in classes]
    joining = _Joining(
        known,
        known.names if known else names,
        np.array(labels(boxed), np.int32),
        frozenset(boxed.index(name) for name in without_boxes),
    )
    more: list[Record] = []
    if folder:
        of_folder = labels(folder.classes)
        for path, label in zip(folder.paths, folder.labels, strict=True):
            width, height = header_size(path) or (1, 1)  # of one that cannot be read; screening says which
            more.append(_with_label_only(_empty(path, width, height), of_folder[label]))
    joined = Splits(
        joining.source(found.train, joining.training, more),
        joining.source(found.valid, joining.validation),
        joining.source(found.test, joining.evaluation) if found.test is not None else None,
    )
    _say(found, joined, len(more))
    return joined


def _empty(path: Path, width: int, height: int) -> Record:
    none = np.zeros(0)
    return Record(str(path), path, width, height, none, none, none, none, none)


def _say(found: Splits, joined: Splits, more: int) -> None:
    kept = [record.image_label for record in joined.train.annotations.records]  # type: ignore[attr-defined]
    only = sum(label >= 0 for label in kept)
    left = {"train": len(found.train) + more - len(kept), "valid": len(found.valid) - len(joined.valid)}
    said = f"joint training: {len(kept) - only} images with boxes, {only} with a label only"
    print(text.one_line(said + "".join(f"; {count} of {part} left out" for part, count in left.items() if count)))


def parents(source: Source) -> tuple[int, ...]:
    """Parent of each class of annotated images in their tree, see ``ops.wordtree``; empty where there is none."""
    base, _ = sources.innermost(source)
    return base.annotations.parents if isinstance(base, annotations.LabelledImages) else ()
