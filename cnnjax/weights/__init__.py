"""Published weights: read from files of Keras, torch and others, matched with our models, prepared for.

``load`` gives a model's variables, ``save`` writes them; ``published`` lists what can be had by a tag; ``preprocess``
makes pixels what a network expects, ``decode_predictions`` names what it says.
"""

import difflib
from pathlib import Path
from typing import Literal

import flax.linen as linen

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
    image_size: int | tuple[int, int] | None = None,
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
        of ``experiments/``. What it is is told from the content. torch's files are read without running what they ask
        for: tensors and plain containers only. A file by a published name must be the published one.
      model: a module of ``models``: the layers, strides and paddings of the publisher, ``published()[tag].create()``.
      image_size: of the images, (height, width) or both, where dense layers depend on it; default: the model's own.
      head: "new" starts a new last layer (and those of auxiliary heads), whatever the file has for it.
      key: from which a new head is drawn (default: ``jax.random.key(0)``).
      reverse_channels: turns round the input of the first convolution: weights for BGR images then take RGB.

    Returns:
      Arrays of JAX on the default device, float32 as the model's parameters.

    Raises:
      UserError: what is wrong with the file, with the download, or between file and model, with both sides.
    """
    if head not in ("strict", "new"):
        raise UserError(f'head is "strict" or "new", got {head!r}')
    size = model.image_shape[:2] if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    return loading.read(
        _path(source),
        model,
        (height, width, model.image_shape[2]),
        head=head,
        key=key,
        reverse_channels=reverse_channels,
    )


def _path(source: str | Path) -> Path:
    """The file, downloaded if need be, checked if its name is a published one's."""
    known = published()
    if isinstance(source, str) and source in known:
        return download.cached(known[source])
    path = Path(source)
    if not path.exists():
        close = difflib.get_close_matches(str(source), known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{source} is neither a file nor a tag of weights.published(){hint}")
    if path.is_file() and (entry := download.by_file_name(path.name)) is not None:
        download.verify(path, entry)
    return path
