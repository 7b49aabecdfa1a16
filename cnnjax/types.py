"""Names that every module shares, and the conventions, stated once.

Images are NHWC: ``uint8 [n, h, w, c]`` on the host, float on the device. Kernels are HWIO. Boxes are
``float [n, 4]``, ``(x_min, y_min, x_max, y_max)`` in pixels. Ragged targets are padded and a ``mask``
marks what is real. A model returns ``(logits, endpoints)``. Random keys are passed, never stored; the
batch at step s is a pure function of (seed, s). Everything under ``jax.jit`` has a static shape.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Key = jax.Array
Batch = Mapping[str, Array]  # "image" [n, h, w, c], "label" [n], and in evaluation "mask" [n]
Schedule = Callable[[Any], Any]  # step → learning rate


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Layout(NamedTuple):
    """How somebody else's files name and lay out the weights of one of our models.

    keys: (regular expression of a module's path, template of their name for it); the first that matches all of the path
      counts. In a template ``{1}`` is a group, ``{1+1}`` and ``{2-1}`` its number with one more or less. Keras: the
      layer, or ``layer:weight`` where one of theirs is two of ours. torch: what comes before ``.weight``.
    epsilon: of their BatchNorm.
    fields: fields that the model must have, or it computes something else with these weights.
    absent: leaves that they leave out, and what they stand for, such as ``{"scale": 1.0}``.
    flat: torch: path of a dense layer after a flattened map → that map's (channels, height, width), the order in which
      theirs is flattened.
    unused: regular expression of keys that a model without auxiliary heads leaves over.
    """

    keys: tuple[tuple[str, str], ...]
    epsilon: float | None = None
    fields: Mapping[str, Any] = _NOTHING
    absent: Mapping[str, float] = _NOTHING
    flat: Mapping[str, tuple[int, int, int]] = _NOTHING
    unused: str = ""


class UserError(Exception):
    """Something the user can put right: the message is one line that names the cause and the cure."""
