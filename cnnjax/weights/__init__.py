"""Published weights: read from files of Keras, torch and others, matched with our models, prepared for.

``load`` gives a model's variables, ``save`` writes them; ``published`` lists what can be had by a tag; ``preprocess``
makes pixels what a network expects, ``decode_predictions`` names what it says.
"""

import difflib
from pathlib import Path
from typing import Literal

import flax.linen as linen
import numpy as np

from cnnjax.types import Key, PyTree, UserError
from cnnjax.weights import download, loading, saving
from cnnjax.weights.catalog import Published, published
from cnnjax.weights.labels import decode_predictions
from cnnjax.weights.preprocess import preprocess

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
    """The variables of ``model`` (``params`` and, with BatchNorm, ``batch_stats``) with published weights.

    Every array of the file is used once and every one of the model filled once, or an error lists what is not. Where
    the publisher's layout differs, it is converted exactly for inference: the bias of a convolution before BatchNorm
    goes into the mean, another epsilon into the variance. Weights of auxiliary heads are left out if the model has
    none, those of the head if ``model.num_classes`` is None.

    Args:
      source: a tag of ``published()``, which is downloaded unless the cache has it, or a file: Keras' ``.h5``,
        ``.weights.h5``, ``.keras``; ``.safetensors``; torch's ``.pth``; ``.npz``; or a folder by Orbax, such as a run
        of ``experiments/``, whose newest checkpoint counts. What it is is told from the content. torch's files are
        read without running what they ask for: tensors and plain containers only. A file by a published name must be
        the published one.
      model: a module of ``models``: the layers, strides and paddings of the publisher, ``published()[tag].create()``.
      image_size: of the images where layers depend on it: height and width, or (height, width), or with the channels;
        default: the model's own ``image_shape``.
      head: "new" starts a new last layer (and those of auxiliary heads), whatever the file has by the publisher's name
        of it, if anything.
      key: from which a new head is drawn (default: ``jax.random.key(0)``).
      reverse_channels: turns round the input of the first convolution: weights for BGR images then take RGB.

    Returns:
      Arrays of JAX on the default device, float32 as the model's parameters.

    Raises:
      UserError: what is wrong with the file, with the download, or between file and model, with both sides.
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
    own = model.image_shape
    given = own if size is None else tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(given) not in (2, 3) or not all(isinstance(n, int | np.integer) and n > 0 for n in given):
        raise UserError(f"image_size is a number of pixels, (height, width) or (height, width, channels); got {size!r}")
    return int(given[0]), int(given[1]), int((*given, own[2])[2])


def _path(source: str | Path) -> Path:
    """The file, downloaded if need be, checked if its name is a published one's."""
    known, path = published(), Path(source)
    try:
        exists = path.exists()
    except OSError:  # a name longer than any file's
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
