"""Weights of networks: published ones and files of Keras, torch and others, loaded into the variables of a model.

``load`` gives the variables, ``save`` writes them; ``published`` lists the files that can be downloaded; ``preprocess``
prepares images for a published network, ``decode_predictions`` gives the names of the classes that it predicts.
"""

import difflib
from pathlib import Path
from typing import Literal

import flax.linen as linen
import numpy as np

from cnnjax.types import Key, PyTree, UserError
from cnnjax.weights import loading, saving
from cnnjax.weights.hub import download
from cnnjax.weights.hub.catalog import Published, published
from cnnjax.weights.hub.labels import decode_predictions
from cnnjax.weights.hub.preprocess import preprocess

__all__ = ["Published", "decode_predictions", "load", "preprocess", "published", "save"]

save = saving.save


def load(
    source: str | Path,
    model: linen.Module,
    *,
    image_size: int | tuple[int, int] | tuple[int, int, int] | None = None,
    head: Literal["strict", "new"] = "strict",
    key: Key | None = None,
    reverse_channels: bool = False,
) -> PyTree:
    """Loads the variables of ``model`` (``params`` and, with BatchNorm, ``batch_stats``) from a file.

    Every array of the file is used once and every array of the model is filled once, or an error lists the exceptions.
    Other publishers' layouts are converted exactly for inference: the bias of a convolution before BatchNorm goes into
    the mean, another epsilon into the variance. Weights of auxiliary heads are left out if the model has none, those of
    the head if ``model.num_classes`` is None.

    Args:
      source: a tag of ``published()``, whose file is downloaded unless the cache has it; or a file: Keras' ``.h5``,
        ``.weights.h5``, ``.keras``; ``.safetensors``; torch's ``.pth``; ``.npz``; or a folder that Orbax wrote, such as
        a run of ``experiments/``, from which the newest checkpoint is taken. The format is recognized by the content.
        torch's files are read without running any code that they name: tensors and plain containers only. A file named
        like a published one must have that one's checksum.
      model: has the layers, strides and paddings that the publisher's network has; for a tag, the model and the fields
        that ``published()[tag]`` names.
      image_size: pixels of the images, where the shapes of layers depend on them: a number for height and width, or
        (height, width), or (height, width, channels); default: ``model.image_shape``.
      head: "strict" takes the head from the file; "new" initializes the last layer (and those of auxiliary heads)
        randomly, also where the file has one.
      key: random key from which a new head is drawn (default: ``jax.random.key(0)``).
      reverse_channels: reverses the input channels of the first convolution: weights for BGR images then take RGB.

    Returns:
      Arrays of JAX on the default device, of the types of the model's parameters (float32).

    Raises:
      UserError: the file is damaged, cannot be downloaded, or does not fit the model; the message names both sides.
    """
    if head not in ("strict", "new"):
        raise UserError(f'head is "strict" or "new", got {head!r}')
    return loading.read(
        _path(source),
        model,
        _image_shape(model, image_size),
        head=head,
        key=key,
        reverse_channels=reverse_channels,
    )


def _image_shape(model: linen.Module, size: int | tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width and channels; UserError if ``size`` is none of the three forms."""
    own = model.image_shape
    given = own if size is None else tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(given) not in (2, 3) or not all(isinstance(n, int | np.integer) and n > 0 for n in given):
        raise UserError(f"image_size is a number of pixels, (height, width) or (height, width, channels); got {size!r}")
    return int(given[0]), int(given[1]), int((*given, own[2])[2])


def _path(source: str | Path) -> Path:
    """Path of the file: downloaded for a tag, verified if it has the name of a published file."""
    known, path = published(), Path(source)
    try:
        exists = path.exists()
    except OSError:  # a name too long for a file
        exists = False
    if isinstance(source, str) and source in known:
        if exists:
            raise UserError(f"{source} is a published tag and a file here: write ./{source} for the file, or move it")
        return download.cached(known[source])
    if not exists:
        close = difflib.get_close_matches(str(source), known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{source} is neither a file nor a tag of weights.published(){hint}")
    if path.is_file() and (entry := download.by_file_name(path.name)) is not None:
        download.verify(path, entry)
    return path
