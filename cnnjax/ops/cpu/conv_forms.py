"""Forms of convolution that XLA computes fast on a CPU, and the tables that say which geometry takes which form.

Each form takes a geometry and two arrays, as its primitive in ``conv_primitives`` does. x is ``[n, h, w, c]``, dy
``[n, *out, features]``, kernel ``[*window, c / groups, features]``. Times were measured on 2 cores with AVX-512, in
float32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.cpu import winograd
from cnnjax.ops.cpu.dispatch import Row, choose
from cnnjax.ops.cpu.geometry import Geometry, Phases, interleave, pad, phases, rows, strided
from cnnjax.ops.cpu.sum_primitives import add_up, column_sum


def plain_conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution y, by lax."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, g.strides, g.pads, dimension_numbers=layout, feature_group_count=g.groups
    )


def plain_input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx for the input, by lax."""
    x = jax.ShapeDtypeStruct(g.x, dy.dtype)
    return jax.linear_transpose(lambda x: plain_conv(g, x, kernel), x)(dy)[0]


def plain_kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient dk for the kernel, by lax."""
    kernel = jax.ShapeDtypeStruct(g.kernel, x.dtype)
    return jax.linear_transpose(lambda kernel: plain_conv(g, x, kernel), kernel)(dy)[0]


# 1×1: a matrix product. The pixels become rows before the product: contracting three axes at once would transpose.


def pointwise_conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution, y = x · kernel at every pixel that the stride reaches."""
    return (rows(strided(x, (0, 0), g.out[1:3], g.strides)) @ kernel[0, 0]).reshape(g.out)


def pointwise_input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient for the input, dx = dy · kernelᵀ, with zeros at the pixels that the stride skips."""
    dx = lax.dot_general(rows(dy), kernel[0, 0], (((1,), (1,)), ((), ())))
    pads = [(0, size - (out - 1) * s - 1, s - 1) for size, out, s in zip(g.x[1:3], g.out[1:3], g.strides, strict=True)]
    return lax.pad(dx.reshape(*dy.shape[:3], -1), np.zeros((), dy.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def pointwise_kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient for the kernel, dk = xᵀ · dy."""
    x = strided(x, (0, 0), g.out[1:3], g.strides)
    return lax.dot_general(rows(x), rows(dy), (((0,), (0,)), ((), ()))).reshape(g.kernel)


def pointwise_kernel_grad_by_image(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient for the kernel, dk = Σ over images of xᵀ · dy."""
    n = g.x[0]
    x = strided(x, (0, 0), g.out[1:3], g.strides).reshape(n, -1, g.x[3])
    return lax.dot_general(x, dy.reshape(n, -1, g.out[3]), (((1,), (1,)), ((0,), (0,)))).sum(0).reshape(g.kernel)


# Gradients for the input by phases: with stride s, the same taps reach all pixels of one remainder mod s, so that each
# such phase is a convolution of stride 1. lax convolves dy with zeros in between: (s² − 1) / s² of its work is wasted.


def dense_input_grad_by_phases(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx of a strided convolution: for each phase a dense convolution of dy with that phase's taps."""
    down, right = phases(g)
    parts = [
        [_dense_phase(g, dy, kernel, (down, a), (right, b)) for b in range(g.strides[1])] for a in range(g.strides[0])
    ]
    return interleave(parts, g.x[1:3])


def _dense_phase(g: Geometry, dy: jax.Array, kernel: jax.Array, *dims: tuple[Phases, int]) -> jax.Array:
    counts = tuple(phase.size for phase, _ in dims)
    if not all(phase.taps[a] for phase, a in dims):
        return jnp.zeros((g.x[0], *counts, g.x[3]), dy.dtype)
    part = kernel
    pads = []
    for axis, (phase, a) in enumerate(dims):
        first, last = phase.taps[a][0], phase.taps[a][-1]
        part = lax.slice_in_dim(part, first[0], last[0] + 1, g.strides[axis], axis)
        # The phase reads the windows from last's shift to size − 1 + first's shift.
        pads.append((-last[1], phase.size - 1 + first[1] - (dy.shape[1 + axis] - 1)))
    dy = pad(dy, [(min(lo, 0), min(hi, 0)) for lo, hi in pads])
    pads = [(max(lo, 0), max(hi, 0)) for lo, hi in pads]
    if part.shape[:2] == (1, 1):
        dx = lax.dot_general(rows(pad(dy, pads)), part[0, 0], (((1,), (1,)), ((), ())))
        return dx.reshape(g.x[0], *counts, g.x[3])
    return lax.conv_general_dilated(dy, lax.rev(part, (0, 1)), (1, 1), pads, dimension_numbers=("NHWC", "HWOI", "NHWC"))


# Depthwise: sums of shifted products. With m kernels per channel, each channel is first repeated m times.


def _repeated(g: Geometry) -> tuple[Geometry, int]:
    """Geometry of the convolution over channels repeated m times, and m."""
    m = g.kernel[-1] // g.groups
    return g._replace(x=(*g.x[:3], g.kernel[-1]), groups=g.kernel[-1]), m


def _padded(g: Geometry, x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from computing the padding again for each tap.
    return lax.optimization_barrier(pad(x, g.pads))


def depthwise_conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution, y = Σ over taps of a shifted x times the tap's weights."""
    g, m = _repeated(g)
    x = _padded(g, jnp.repeat(x, m, -1))
    taps = [(u, v) for u in range(g.kernel[0]) for v in range(g.kernel[1])]
    return add_up([strided(x, tap, g.out[1:3], g.strides) * kernel[*tap, 0] for tap in taps])


def depthwise_input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx: for each phase the sum over its taps of a shifted dy times the tap's weights."""
    g, m = _repeated(g)
    down, right = phases(g)
    dy = lax.optimization_barrier(pad(dy, ((down.before, down.after), (right.before, right.after))))

    def part(rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> jax.Array:
        terms = [
            strided(dy, (down.before + i, right.before + j), (down.size, right.size), (1, 1)) * kernel[u, v, 0]
            for u, i in rows
            for v, j in columns
        ]
        return add_up(terms) if terms else jnp.zeros((g.x[0], down.size, right.size, g.x[3]), dy.dtype)

    dx = interleave([[part(rows, columns) for columns in right.taps] for rows in down.taps], g.x[1:3])
    return dx if m == 1 else dx.reshape(*g.x[:3], -1, m).sum(-1)


_UNROLLED = 16  # rows added in one expression: more compile slowly, fewer leave more to the product
_CACHED = 6 << 20  # bytes of x that nine passes over it may find in the cache


def depthwise_kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient dk: for each tap the sum over pixels of a shifted x times dy.

    Rows are added in one expression, and the rest by a product of ones with the matrix of pixels.
    """
    g, m = _repeated(g)
    high, wide = g.out[1:3]
    blocks = -(-high // _UNROLLED)
    step = -(-high // blocks)
    missing = blocks * step - high
    x = _padded(
        g._replace(pads=((g.pads[0][0], g.pads[0][1] + missing * g.strides[0]), g.pads[1])), jnp.repeat(x, m, -1)
    )
    dy = pad(dy, ((0, missing), (0, 0)))
    met = [(n - 1) * s + 1 for n, s in zip((blocks * step, wide), g.strides, strict=True)]  # pixels that a tap spans

    def tap(x: jax.Array, dy: jax.Array, place: jax.Array) -> jax.Array:
        x = lax.dynamic_slice(x, (0, *place, 0), (x.shape[0], *met, x.shape[3]))
        terms = [
            strided(x, (i * g.strides[0], 0), (blocks, wide), (step * g.strides[0], g.strides[1]))
            * strided(dy, (i, 0), (blocks, wide), (step, 1))
            for i in range(step)
        ]
        return column_sum(rows(add_up(terms)))

    def taps(x: jax.Array, dy: jax.Array) -> jax.Array:
        # A loop over places: unrolled, nine taps take nine times as long to compile.
        return lax.map(lambda place: tap(x, dy, place), np.argwhere(np.ones(g.window)))

    if math.prod(g.x) * x.dtype.itemsize <= _CACHED:
        return taps(x, dy).reshape(g.kernel)
    zero = jnp.zeros((math.prod(g.window), g.kernel[-1]), x.dtype)
    total, _ = lax.scan(lambda total, image: (total + taps(image[0][None], image[1][None]), None), zero, (x, dy))
    return total.reshape(g.kernel)


# Grouped: a dense convolution of several neighboring groups at once, with zeros between channels of different groups.

_WIDTH = 32  # channels of a dense part: narrower ones starve the matrix product, wider ones multiply more zeros


def _merged(g: Geometry) -> tuple[Geometry, int, int]:
    """Geometry of one dense part, how many parts, and how many groups in each."""
    fan_in = g.kernel[2]
    together = max(t for t in range(1, g.groups + 1) if g.groups % t == 0 and (t == 1 or t * fan_in <= _WIDTH))
    parts = g.groups // together
    kernel = (*g.kernel[:2], together * fan_in, g.kernel[3] // parts)
    return Geometry((*g.x[:3], together * fan_in), kernel, g.strides, g.pads, 1), parts, together


def _block_diagonal(kernel: jax.Array, together: int) -> jax.Array:
    """``[h, w, i, together · o]`` → ``[h, w, together · i, together · o]``, zero between different groups."""
    h, w, i, o = kernel.shape
    blocks = kernel.reshape(h, w, 1, i, together, o // together)
    return (blocks * jnp.eye(together, dtype=kernel.dtype)[:, None, :, None]).reshape(h, w, together * i, o)


def _split(x: jax.Array, parts: int) -> list[jax.Array]:
    return jnp.split(x, parts, -1)


def grouped_conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution y, part by part."""
    part, parts, together = _merged(g)
    pairs = zip(_split(x, parts), _split(kernel, parts), strict=True)
    return jnp.concatenate([conv(part, a, _block_diagonal(k, together)) for a, k in pairs], -1)


def grouped_input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx, part by part."""
    part, parts, together = _merged(g)
    pairs = zip(_split(dy, parts), _split(kernel, parts), strict=True)
    return jnp.concatenate([input_grad(part, d, _block_diagonal(k, together)) for d, k in pairs], -1)


def grouped_kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient dk: the blocks on the diagonal of each dense part's gradient."""
    part, parts, together = _merged(g)

    def diagonal(dk: jax.Array) -> jax.Array:
        h, w, i, o = dk.shape
        blocks = dk.reshape(h, w, together, i // together, together, o // together)
        return jnp.einsum("hwtito->hwito", blocks).reshape(h, w, i // together, o)

    pairs = zip(_split(x, parts), _split(dy, parts), strict=True)
    return jnp.concatenate([diagonal(kernel_grad(part, a, d)) for a, d in pairs], -1)


def conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution y in the form that suits its geometry."""
    return choose(CONV, g, plain_conv)(g, x, kernel)


def input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient dx in the form that suits its geometry."""
    return choose(INPUT_GRAD, g, plain_input_grad)(g, dy, kernel)


def kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient dk in the form that suits its geometry."""
    return choose(KERNEL_GRAD, g, plain_kernel_grad)(g, x, dy)


def _is_pointwise(g: Geometry) -> bool:
    return g.kernel[:2] == (1, 1) and g.groups == 1 and not any(map(any, g.pads))


def _is_large_pointwise(g: Geometry) -> bool:
    return _is_pointwise(g) and math.prod(g.out[1:3]) >= 700 and math.prod(g.kernel) >= 1 << 13


def _is_depthwise(g: Geometry) -> bool:
    # Each tap is an expression of its own, and more than 8×8 compile slowly: those windows take the grouped form.
    return g.groups > 1 and g.kernel[2] == 1 and math.prod(g.window) <= 64


def _is_grouped(g: Geometry) -> bool:
    return g.groups > 1


def _is_strided(g: Geometry) -> bool:
    return g.strides != (1, 1)


def _is_padded_beyond(g: Geometry) -> bool:
    return any(max(pair) >= k for pair, k in zip(g.pads, g.window, strict=True))


CONV = (
    Row(_is_pointwise, pointwise_conv, "no patches to gather"),
    Row(_is_depthwise, depthwise_conv, "XLA computes channels one by one: 97 → 3 ms"),
    Row(_is_grouped, grouped_conv, "XLA computes groups one by one: 24 → 8 ms"),
    Row(winograd.suits, winograd.winograd_conv, "2.25 times fewer products: 78 → 39 ms"),
)
INPUT_GRAD = (
    Row(_is_pointwise, pointwise_input_grad, "no patches to gather"),
    Row(_is_depthwise, depthwise_input_grad, "XLA computes channels one by one: 189 → 2 ms with stride 2"),
    Row(_is_grouped, grouped_input_grad, "XLA computes groups one by one: 19 → 8 ms"),
    Row(winograd.suits, winograd.winograd_input_grad, "2.25 times fewer products: 78 → 43 ms"),
    Row(
        _is_strided,
        dense_input_grad_by_phases,
        "no products with zeros: 27 → 12 ms; XLA aborts on some (jaxlib 0.10.2)",
    ),
    Row(
        _is_padded_beyond,
        dense_input_grad_by_phases,
        "XLA errs where windows lie wholly in the padding (jaxlib 0.10.2)",
    ),
)
KERNEL_GRAD = (
    Row(
        _is_large_pointwise,
        pointwise_kernel_grad_by_image,
        "one product over so many pixels is slower than a product per image: 46 → 37 ms",
    ),
    Row(_is_pointwise, pointwise_kernel_grad, "XLA transposes both sides: 20 → 9 ms"),
    Row(_is_depthwise, depthwise_kernel_grad, "XLA computes channels one by one: 148 → 7 ms"),
    Row(_is_grouped, grouped_kernel_grad, "XLA computes groups one by one: 4.6 s → 15 ms"),
    Row(winograd.suits, winograd.winograd_kernel_grad, "2.25 times fewer products: 81 → 49 ms"),
)
