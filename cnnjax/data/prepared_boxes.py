"""Images with boxes from a data set that tensorflow-datasets prepared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnjax.data import annotations
from cnnjax.data.annotations import LabelledImages
from cnnjax.data.formats import tfds, tfds_boxes
from cnnjax.data.records import Record
from cnnjax.types import UserError


@dataclass(frozen=True)
class PreparedImages(LabelledImages):
    """Source of images with their boxes; a record's id is the index of its image in ``stored``, or names a file."""

    stored: tfds.Tfds

    def picture(self, record: Record) -> np.ndarray:
        """Image of a record, uint8 [h, w, 3].

        Raises:
          CorruptImageError: it cannot be decoded.
          UserError: the file of the records is damaged.
        """
        return annotations.picture(record) if isinstance(record.id, str) else self.stored.image(record.id)


def open_split(name: str, split: str, directory: Path) -> PreparedImages:
    """Opens a split (``train[:90%]``) of a data set with boxes; its faults are those of `annotations.FAULTS`.

    Raises:
      UserError: as `tfds_boxes.read`, or no image has a box.
    """
    read, stored = tfds_boxes.read(name, split, directory)
    found = annotations.checked(read, "tfds")
    if not any(len(record.boxes) for record in found.records):
        raise UserError(f"{name}, split {split!r}: none of its {len(stored)} images has a box: choose another split")
    return PreparedImages(found, stored)
