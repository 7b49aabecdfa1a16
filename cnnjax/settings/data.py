"""Settings of data: reading, random changes of images, mixing of pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np

from cnnjax.data import augment, mixing, pipeline
from cnnjax.data.sources import Source
from cnnjax.data.splits import FRACTION, Fractions
from cnnjax.settings.fields import MAY_DIFFER, Bytes, Fraction, NonNegative, NonNegativeInt, Threads, Workers
from cnnjax.types import Batch, Key

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Reading:
    """Reading of a data set."""

    data_dir: Annotated[Path | None, MAY_DIFFER] = None
    """Folder of tfds data sets; default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    in_memory_bytes: Bytes = 2**31
    """Splits up to this size are decoded once, into arrays; larger ones are read as they are needed."""
    threads: Annotated[Threads, MAY_DIFFER] = 8
    """Threads that read and decode images as they are needed."""
    workers: Annotated[Workers, MAY_DIFFER] = 0
    """Processes that read and decode, each with its threads; 0: only threads."""
    skip_corrupt: bool = False
    """Leave out images that cannot be used, naming them; else they end the run before it trains. Files are checked in
    any case, only once while they do not change."""
    test_fraction: Fraction | None = None
    """Share of the images to cut off for testing where there is no test split; 0: none, the validation split is
    evaluated at the end. None: 0 where a validation split is given, else 0.15, of flowers.py 0.1, localize.py 0.2."""
    valid_fraction: Fraction | None = None
    """Share of the others to cut off for validation where there is no such split. None: 0.15."""

    def fractions(self, usual: float = FRACTION) -> Fractions:
        """Shares to cut off where splits are missing; ``usual`` is that for testing which is cut unasked."""
        return Fractions(self.test_fraction, self.valid_fraction, usual)

    def batches(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        load: pipeline.Load | None = None,
        size_at: Callable[[int], int] | None = None,
    ) -> Batches:
        """Step → batches from there on; see ``pipeline.train_batches``."""
        read = partial(pipeline.train_batches, source, batch_size, seed, load=load, size_at=size_at)
        return partial(read, threads=self.threads, workers=self.workers)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image, on the device."""

    flip: bool = False
    """Mirror half of the images."""
    shift: Fraction = 0.0
    """Largest shift in each direction, as a share of the image."""
    rotate: NonNegative = 0.0
    """Largest rotation, either way, in degrees."""
    zoom: Fraction = 0.0
    """Largest zoom: 0.1 zooms by 0.9 … 1.1."""
    brightness: Fraction = 0.0
    """Largest change of brightness: 0.1 multiplies pixels by 0.9 … 1.1."""
    contrast: Fraction = 0.0
    """Largest change of contrast: 0.1 multiplies the distance from the mean gray by 0.9 … 1.1."""
    cutout: NonNegativeInt = 0
    """Side of the square that is blanked, in pixels."""

    def op(self, size: int, fill: float = 0.0) -> augment.Op:
        """Random operation on one example.

        Args:
          size: height of the images in pixels.
          fill: value of the pixels that come from outside the image.
        """
        ops: list[augment.Op] = [augment.random_flip_left_right] if self.flip else []
        if self.shift or self.rotate or self.zoom:
            ops.append(
                partial(
                    augment.random_affine,
                    max_degrees=self.rotate,
                    max_change=self.zoom,
                    max_pixels=self.shift * size,
                    fill=fill,
                )
            )
        if self.brightness:
            ops.append(partial(augment.random_brightness, max_change=self.brightness))
        if self.contrast:
            ops.append(partial(augment.random_contrast, max_change=self.contrast))
        if self.cutout:
            ops.append(partial(augment.random_cutout, side=self.cutout))
        return augment.compose(*ops)


@dataclass(frozen=True)
class Mixing:
    """Mixing of pairs of training images and their labels; with mixup and cutmix on, each step draws one of them."""

    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution of the weights with which pairs of images are mixed; 0: off."""
    cutmix: NonNegative = 0.0
    """Alpha, for boxes pasted from another image; 0: off."""

    def apply(self, key: Key, batch: Batch, classes: int) -> Batch:
        """Batch with mixed ``image`` and, as distributions [n, classes], ``target``; unchanged where all is off."""
        chosen = [(f, alpha) for f, alpha in ((mixing.mixup, self.mixup), (mixing.cutmix, self.cutmix)) if alpha]
        if not chosen:
            return batch
        for_which, for_op = jax.random.split(key)
        branches = [partial(lambda f, alpha, x, y: f(for_op, x, y, alpha), f, alpha) for f, alpha in chosen]
        which = jax.random.randint(for_which, (), 0, len(branches))
        labels = jax.nn.one_hot(batch["label"], classes)
        images, target = jax.lax.switch(which, branches, batch["image"], labels)
        return {**batch, "image": images, "target": target}
