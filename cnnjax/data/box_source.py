"""Examples with boxes for training: pictures by index, and boxes of one fixed number."""

from dataclasses import dataclass, replace

import numpy as np

from cnnjax.data.annotations import Annotations, picture
from cnnjax.types import UserError


@dataclass(frozen=True)
class BoxSource:
    """Random access: ``{"image": uint8 [h, w, 3], "boxes": float32 [k, 4], "labels": int32 [k], "ignore": bool [k]}``.

    ``ignore`` marks crowds and difficult objects, which evaluation neither rewards nor punishes.
    Raises as `annotations.picture`.
    """

    annotations: Annotations

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.annotations.classes

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.annotations.records[index]
        ignore = record.crowd | record.difficult
        return {"image": picture(record), "boxes": record.boxes, "labels": record.labels, "ignore": ignore}


def only(found: Annotations, objects: int) -> Annotations:
    """The pictures with exactly that many boxes: 1 for classification with localization.

    Raises:
      UserError: there is none.
    """
    records = tuple(record for record in found.records if len(record.boxes) == objects)
    if not records:
        raise UserError(f"no picture of {len(found.records)} has exactly {objects} box(es)")
    return replace(found, records=records)


def padded(boxes: np.ndarray, labels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Boxes [k, 4] and labels [k] → ``boxes`` [size, 4], ``labels`` [size], ``mask`` [size], False and zeros from k on.

    Raises:
      UserError: there are more than ``size``.
    """
    if len(boxes) > size:
        raise UserError(f"a picture has {len(boxes)} boxes, room is for {size}: make more")
    result = {"boxes": np.zeros((size, 4), np.float32), "labels": np.zeros(size, np.int32)}
    result["boxes"][: len(boxes)], result["labels"][: len(boxes)] = boxes, labels
    return {**result, "mask": np.arange(size) < len(boxes)}
