"""3×3 convolutions of stride 1 by Winograd's minimal filtering F(2×2, 3×3) (Lavin & Gray 2016, sec. 4.1).

Four outputs take 16 products instead of 36: tiles of 4×4 inputs, two pixels apart, and the kernel are transformed by
sums, multiplied as 16 matrices, and transformed back, ``Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A``. The larger F(4×4, 3×3) saves
more products, but rounds ten times worse; this one rounds as a plain convolution does.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.cpu.geometry import Geometry, interleave, pad, rows, strided
from cnnjax.ops.cpu.sum_primitives import add_up

Shape = tuple[int, ...]
_BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_CACHED = 4 << 20  # bytes of an activation whose tiles, four times as many bytes, stay in the cache
_LARGEST = 7 << 20  # bytes of the largest image whose own tiles stay there


def _sum(signs: np.ndarray, terms: Sequence[jax.Array]) -> jax.Array:
    """Sum of sign · term, with signs of ±1 and 0."""
    total = add_up([x if sign > 0 else -x for sign, x in zip(signs, terms, strict=True) if sign])
    # Without the barrier XLA may compute the sum again inside the next operation.
    return lax.optimization_barrier(total)


def _transformed_kernel(kernel: jax.Array) -> jax.Array:
    """Kernel ``G g Gᵀ`` for every pair of channels, as one small product: ``[3, 3, i, o]`` → ``[16, i, o]``."""
    transform = np.kron(_G, _G).astype(kernel.dtype)
    return jnp.matmul(transform, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def _padded(x: jax.Array, before: tuple[int, int], out: Sequence[int]) -> jax.Array:
    """Input x with ``before`` zeros ahead and as many behind as the 4×4 tiles for ``out`` pixels need."""
    ends = [2 * -(-n // 2) + 2 - lo - have for n, lo, have in zip(out, before, x.shape[1:3], strict=True)]
    return lax.optimization_barrier(pad(x, list(zip(before, ends, strict=True))))


def _tiles(m: np.ndarray, x: jax.Array, out: Sequence[int], start: tuple[int, int] = (0, 0)) -> list[jax.Array]:
    """Entries of ``m · d · mᵀ`` for all tiles d of x, each entry a matrix ``[tiles, c]``.

    Tiles begin two pixels apart, the first at ``start``; there are as many as ``out`` pixels need.
    """
    size, (top, left) = m.shape[1], start
    high, wide = (-(-n // 2) for n in out)
    lines = [strided(x, (top + i, 0), (high, x.shape[2]), (2, 1)) for i in range(size)]
    entries = []
    for down in m:
        line = _sum(down, lines)
        places = [strided(line, (0, left + j), (high, wide), (1, 2)) for j in range(size)]
        entries += [rows(_sum(right, places)) for right in m]
    return entries


def _filter(x: jax.Array, before: tuple[int, int], kernel: jax.Array, contract: int, out: Shape) -> jax.Array:
    """Convolution of x with a transformed kernel ``[16, i, o]``, whose axis ``contract + 1`` meets x's channels."""
    dims = (((2,), (contract + 1,)), ((0,), (0,)))
    tiles = _tiles(_BT, _padded(x, before, out[1:3]), out[1:3])
    # One product of stacks: 16 products of slices of the kernel would compile 16 copies of slices.
    products = list(lax.dot_general(jnp.stack(tiles), kernel, dims))
    shape = (x.shape[0], -(-out[1] // 2), -(-out[2] // 2), out[3])
    parts = [[_sum(np.kron(down, right), products).reshape(shape) for right in _AT] for down in _AT]
    return interleave(parts, out[1:3])


def _together(g: Geometry) -> int:
    """Number of images to take at once so that their tiles stay in the cache, a divisor of the batch size."""
    one = 4 * max(math.prod(g.x[1:]), math.prod(g.out[1:]))
    return max(n for n in range(1, g.x[0] + 1) if g.x[0] % n == 0 and (n == 1 or n * one <= _CACHED))


def _groups(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(-1, size, *x.shape[1:])


def _map(form: Callable[[jax.Array], jax.Array], x: jax.Array, size: int) -> jax.Array:
    """Result of ``form`` on ``size`` images at a time."""
    if size == x.shape[0]:
        return form(x)
    y = lax.map(form, _groups(x, size))
    return y.reshape(-1, *y.shape[2:])


def winograd_conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution y from 16 products of matrices."""
    before, transformed = (g.pads[0][0], g.pads[1][0]), _transformed_kernel(kernel)
    return _map(lambda x: _filter(x, before, transformed, 0, g.out), x, _together(g))


def winograd_input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx: the convolution of dy with the kernel rotated by 180°."""
    before, rotated = (2 - g.pads[0][0], 2 - g.pads[1][0]), _transformed_kernel(lax.rev(kernel, (0, 1)))
    return _map(lambda dy: _filter(dy, before, rotated, 1, g.x), dy, _together(g))


def winograd_kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient dk: the transpose of ``winograd_conv`` in its kernel."""
    before, size, dims = (g.pads[0][0], g.pads[1][0]), _together(g), (((0,), (0,)), ((), ()))
    ahead, pixels = (max(0, 2 - before[0]), max(0, 2 - before[1])), [*map(max, g.x[1:3], g.out[1:3])]

    def products(x: jax.Array, dy: jax.Array) -> list[jax.Array]:
        # dy is padded as for the gradient in x, so that XLA computes the padded dy once for the two gradients.
        x, dy = _padded(x, before, g.out[1:3]), _padded(dy, ahead, pixels)
        pairs = zip(_tiles(_BT, x, g.out[1:3]), _tiles(_AT.T, dy, g.out[1:3], ahead), strict=True)
        return [lax.dot_general(a, b, dims) for a, b in pairs]

    def add(total: list[jax.Array], images: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
        return [t + p for t, p in zip(total, products(*images), strict=True)], None

    if size == g.x[0]:
        total = products(x, dy)
    else:
        zero = [jnp.zeros(g.kernel[2:], x.dtype)] * 16
        total, _ = lax.scan(add, zero, (_groups(x, size), _groups(dy, size)))
    transform = np.kron(_G.T, _G.T).astype(x.dtype)
    return jnp.matmul(transform, jnp.stack(total).reshape(16, -1)).reshape(g.kernel)


def suits(g: Geometry) -> bool:
    """True where fewer products outweigh more sums: 3×3, stride 1, many channels and tiles, an image in the cache."""
    is_3x3 = g.kernel[:2] == (3, 3) and g.strides == (1, 1) and g.groups == 1
    one_image = 4 * max(math.prod(g.x[1:]), math.prod(g.out[1:]))
    return is_3x3 and min(g.kernel[2:]) >= 64 and g.x[0] * g.out[1] * g.out[2] >= 400 and one_image <= _LARGEST
