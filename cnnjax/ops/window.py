"""Settings of a window that slides over the spatial dimensions, shared by convolution and pooling, and their checks.

Arrays are channels last: ``[n, w, c]``, ``[n, h, w, c]`` or ``[n, d, h, w, c]``.
"""

from collections.abc import Sequence

import numpy as np

from cnnjax.types import Array

Ints = int | Sequence[int]
Padding = str | int | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], ...]


def check_rank(x: Array) -> int:
    """Number of spatial dimensions of ``x [n, *spatial, c]``; ValueError unless 1, 2 or 3."""
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"expected [n, w, c], [n, h, w, c] or [n, d, h, w, c], got shape {tuple(x.shape)}")
    return x.ndim - 2


def per_dim(value: Ints, dims: int, name: str) -> tuple[int, ...]:
    """One value for each of ``dims`` spatial dimensions; an int is repeated. ValueError if one is below 1."""
    values = (int(value),) * dims if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"expected {name} as a positive int or {dims} of them, got {value!r}")
    return values


def explicit_pads(padding: Padding, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pads:
    """Zeros to add before and after each spatial dimension, as ``((lo, hi), ...)``.

    ``padding`` is ``"VALID"`` (none), ``"SAME"`` (output size ceil(size / stride), and where the zeros
    cannot be split evenly the odd one goes after, as in TensorFlow), an int (that many on every side, as
    in torch), or one pair ``(lo, hi)`` for each spatial dimension. ``window`` counts a dilated kernel's
    holes. ValueError for anything else.
    """
    dims = len(sizes)
    if padding == "VALID":
        return ((0, 0),) * dims
    if padding == "SAME":
        totals = (max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, window, strides, strict=True))
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, (int, np.integer)):
        pads: Pads = ((int(padding), int(padding)),) * dims
    elif not isinstance(padding, str) and all(isinstance(p, Sequence) and len(p) == 2 for p in padding):
        pads = tuple((int(lo), int(hi)) for lo, hi in padding)
    else:
        pads = ()
    if len(pads) != dims or min(min(p) for p in pads) < 0:
        raise ValueError(f'expected padding "SAME", "VALID", an int ≥ 0 or {dims} pairs (lo, hi), got {padding!r}')
    return pads


def check_fits(sizes: Sequence[int], window: Sequence[int], pads: Pads) -> None:
    """ValueError if the window is larger than the padded input, which would leave an empty output."""
    padded = tuple(n + lo + hi for n, (lo, hi) in zip(sizes, pads, strict=True))
    if any(k > n for k, n in zip(window, padded, strict=True)):
        raise ValueError(
            f"a window of {tuple(window)} does not fit in the padded input {padded} (input {tuple(sizes)})"
        )
