"""Names that every module shares, and the conventions, stated once.

Images are NHWC: ``uint8 [n, h, w, c]`` on the host, float on the device. Kernels are HWIO. Boxes are
``float [n, 4]``, ``(x_min, y_min, x_max, y_max)`` in pixels. Ragged targets are padded and a ``mask``
marks what is real. A model returns ``(logits, endpoints)``. Random keys are passed, never stored; the
batch at step s is a pure function of (seed, s). Everything under ``jax.jit`` has a static shape.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Key = jax.Array
Batch = Mapping[str, Array]  # "image" [n, h, w, c], "label" [n], and in evaluation "mask" [n]
Schedule = Callable[[Any], Any]  # step → learning rate


class UserError(Exception):
    """Something the user can put right: the message is one line that names the cause and the cure."""
