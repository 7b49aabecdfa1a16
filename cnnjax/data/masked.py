"""Sources of images with a class for every pixel: files beside files, outlines of annotations, prepared data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data import annotations, checking, preparation
from cnnjax.data.formats import mask_folders, masks, tfds
from cnnjax.data.formats.images import decode, header_size
from cnnjax.data.formats.mask_folders import Pair
from cnnjax.data.records import Record
from cnnjax.types import IGNORED, UserError


class Masked:
    """Source whose examples have ``image`` uint8 [h, w, 3] and ``segmentation`` uint8 [h, w]."""

    classes: tuple[str, ...]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def labels(self, index: int) -> np.ndarray:
        """Classes of an image's pixels, uint8 [h, w], ``IGNORED`` where there is none; the image is not read."""
        raise NotImplementedError

    def sizes(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of images as they are shown, by their headers; (1, 1) of one that cannot be read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Segmented(Masked):
    """Images and masks in files, each read when its example is asked for."""

    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    ignored: tuple[int, ...] = ()  # values of masks that are no class, beside 255

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair, labels = self.pairs[index], self.labels(index)
        image = decode(pair.image, 3, pair.image, upright=True)
        if image.shape[:2] != labels.shape:  # the mask may be of the image as it is stored
            image = decode(pair.image, 3, pair.image)
        if problem := self._size_problem(pair, labels, image.shape[:2]):
            raise UserError(problem)
        return {"image": image, "segmentation": labels}

    def labels(self, index: int) -> np.ndarray:
        """Classes of an image's pixels, uint8 [h, w], ``IGNORED`` where there is none; the image is not read.

        Raises:
          UserError: as `mask_folders.read_mask`, or a value is no class.
        """
        pair = self.pairs[index]
        labels = mask_folders.read_mask(pair.mask)
        known = {*range(len(self.classes)), *self.ignored, IGNORED}
        if beyond := sorted(set(np.unique(labels).tolist()) - known):
            cure = f"--ignore {' '.join(map(str, beyond))} leaves such pixels out"
            raise UserError(
                f"{pair.mask}: it has the values {beyond}, but there are {len(self.classes)} classes: {cure}"
            )
        return np.where(np.isin(labels, self.ignored), IGNORED, labels).astype(np.uint8)

    def sizes(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of images as they are shown, by their headers; (1, 1) of one that cannot be read."""
        return [(header_size(self.pairs[i].image) or (1, 1))[::-1] for i in indices]

    def _size_problem(self, pair: Pair, labels: np.ndarray, *shapes: tuple[int, ...]) -> str:
        """Message where a mask has none of its image's ``shapes``, as shown and as stored, else nothing."""
        if labels.shape in shapes:
            return ""
        (height, width), (rows, columns) = shapes[0], labels.shape
        return f"{pair.mask}: it has {columns}×{rows} pixels, its image {width}×{height}: make them equal"

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which examples cannot be used, each with its file, empty for the others; see `checking`."""
        verdicts = checking.verdicts([self.pairs[i].image for i in indices], cache)
        return [self._reason(int(index), verdict) for index, verdict in zip(indices, verdicts, strict=True)]

    def _reason(self, index: int, verdict: checking.Verdict) -> str:
        pair, shown = self.pairs[index], (verdict.height, verdict.width)
        if verdict.error:
            return f"{pair.image}: {verdict.error}"
        try:
            return self._size_problem(pair, self.labels(index), shown, shown[::-1] if verdict.sideways else shown)
        except UserError as error:
            return str(error)


@dataclass(frozen=True)
class Outlined(Masked):
    """Annotated images whose objects are painted by their outlines, large ones first, so that small ones stay seen.

    Class 0 is the background. Pixels of crowds, and of objects that only have a box, are no class.
    """

    images: annotations.AnnotatedImages

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names: the background, then those of the annotations."""
        return ("background", *self.images.annotations.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._record(index)
        return {"image": self.images.picture(record), "segmentation": self.labels(index)}

    def labels(self, index: int) -> np.ndarray:
        """Classes of an image's pixels, uint8 [h, w], ``IGNORED`` where there is none; the image is not read.

        Raises:
          UserError: a run-length code of another size than the image.
        """
        record = self._record(index)
        labels = np.zeros((record.height, record.width), np.uint8)
        try:
            covered = [self._covered(record, k) for k in range(len(record.labels))]
        except ValueError as error:
            raise UserError(f"{record.path}: {error}") from error
        for k in sorted(range(len(covered)), key=lambda k: -np.count_nonzero(covered[k])):
            unknown = record.crowd[k] or record.shapes[k] is None
            labels[covered[k]] = IGNORED if unknown else record.labels[k] + 1
        return labels

    def sizes(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of images, as they are labelled."""
        return [(record.height, record.width) for record in map(self._record, indices)]

    def problems(self, indices: np.ndarray, cache: Path | None) -> list[str]:
        """Reasons for which images cannot be used, see `annotations.AnnotatedImages.problems`; or a mask's size."""
        found = self.images.problems(indices, cache)
        return [problem or self._reason(int(index)) for index, problem in zip(indices, found, strict=True)]

    def _reason(self, index: int) -> str:
        try:
            self.labels(index)
        except UserError as error:
            return str(error)
        return ""

    def _record(self, index: int) -> Record:
        return self.images.annotations.records[index]

    def _covered(self, record: Record, k: int) -> np.ndarray:
        """Pixels of an object, bool [h, w]."""
        shape = record.shapes[k]
        if shape is None:
            left, top, right, bottom = record.boxes[k]
            shape = (np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),)
        return masks.rasterize(shape, record.height, record.width)


class Layout(NamedTuple):
    """Features of a prepared data set: image, mask, and the value in masks of each class."""

    image: str
    mask: str
    values: dict[str, int]


# Of oxford_iiit_pet the trimaps; of cityscapes the 19 classes that its authors evaluate (Cordts et al. 2016, Fig. 1),
# the other ids are no class.
PREPARED = {
    "oxford_iiit_pet": Layout("image", "segmentation_mask", {"pet": 1, "background": 2, "border": 3}),
    "cityscapes": Layout(
        "image_left",
        "segmentation_label",
        {
            **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
            **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
            **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
        },
    ),
}


@dataclass(frozen=True)
class PreparedMasks(Masked):
    """Images and masks of a data set that tensorflow-datasets prepared."""

    stored: tfds.Tfds
    layout: Layout

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes."""
        return tuple(self.layout.values)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, name = self.stored.record(index), self._name(index)
        image, labels = decode(record[self.layout.image], 3, name), self.labels(index)
        if image.shape[:2] != labels.shape:
            raise UserError(f"{name}: its mask has {labels.shape} pixels, its image {image.shape[:2]}")
        return {"image": image, "segmentation": labels}

    def labels(self, index: int) -> np.ndarray:
        """Classes of an image's pixels, uint8 [h, w], ``IGNORED`` where a value is none of them.

        Raises:
          UserError: the mask cannot be read.
        """
        values = mask_folders.read_mask(Path(self._name(index)), self.stored.record(index)[self.layout.mask])
        classes = np.full(values.max(initial=0) + 1, IGNORED, np.uint8)
        for label, value in enumerate(self.layout.values.values()):
            classes[value : value + 1] = label
        return classes[values]

    def sizes(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of images, by their headers."""
        found = [preparation.measure(self.stored.record(int(i))[self.layout.image]) for i in indices]
        return [(width, height) if sideways else (height, width) for width, height, sideways in found]

    def _name(self, index: int) -> str:
        return f"{self.stored.name}, example {index}"


def layout(name: str) -> Layout:
    """Layout of a data set in `PREPARED`; UserError of another."""
    found = PREPARED.get(tfds.base_name(name))
    if found is None:
        raise UserError(f"{name}: no such folder, nor a known data set with masks, as are {', '.join(PREPARED)}")
    return found


def prepared(name: str, split: str, directory: Path) -> PreparedMasks:
    """Opens a split of a data set in `PREPARED`; errors as in ``layout`` and `tfds.tfds_split`."""
    known = layout(name)
    stored = tfds.opened(name, split, directory, tuple(known.values), 3, (known.image, known.mask))
    return PreparedMasks(stored, known)
