"""2-D max pooling as primitives: the maximum, its derivative, and the derivative's transpose.

    max_pool(x) → y          derivative at x along dx: pick(x, dx)
    pick(x, dx) → dy         dx where x is the maximum of its window; transposed in dx: place(x, dy)
    place(x, dy) → dx        dy added where x is the maximum of its window; transposed in dy: pick(x, dx)

Where several pixels of a window are the maximum, the first one counts, row by row, as in lax's gradient.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad

from cnnjax.ops.cpu import dispatch
from cnnjax.ops.cpu.geometry import PoolGeometry, fold, interleave, phases, strided
from cnnjax.ops.cpu.sum_primitives import add_up


def max_pool(g: PoolGeometry, x: jax.Array) -> jax.Array:
    """Maximum over each window: ``x [n, h, w, c]`` → ``y [n, *out, c]``."""
    chex.assert_shape(x, g.x)
    return _max_pool.bind(x, geometry=g)


def _plain_max_pool(g: PoolGeometry, x: jax.Array) -> jax.Array:
    lowest = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, *g.window, 1), (1, *g.strides, 1), ((0, 0), *g.pads, (0, 0)))


def _plain_pick(g: PoolGeometry, x: jax.Array, dx: jax.Array) -> jax.Array:
    return jax.jvp(lambda x: _plain_max_pool(g, x), (x,), (dx,))[1]


def _plain_place(g: PoolGeometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    return jax.vjp(lambda x: _plain_max_pool(g, x), x)[1](dy)[0]


def _taps(g: PoolGeometry, x: jax.Array, outside: float) -> list[jax.Array]:
    """Values at each pixel of the window, row by row, for all windows: ``[n, *out, c]`` each."""
    x = lax.pad(x, np.asarray(outside, x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in g.pads), (0, 0, 0)))
    x = lax.optimization_barrier(x) if any(map(any, g.pads)) else x
    places = [(u, v) for u in range(g.window[0]) for v in range(g.window[1])]
    return [strided(x, place, g.out[1:3], g.strides) for place in places]


def _max_of_taps(g: PoolGeometry, x: jax.Array) -> jax.Array:
    taps = _taps(g, x, -np.inf)
    y = taps[0]
    for tap in taps[1:]:
        y = lax.max(y, tap)
    return y


def _place_of_max(g: PoolGeometry, x: jax.Array) -> jax.Array:
    """Index of the pixel that is the maximum of its window, counted row by row: uint8 ``[n, *out, c]``."""
    taps = _taps(g, x, -np.inf)
    best, place = taps[0], jnp.zeros(g.out, jnp.uint8)
    for i, tap in enumerate(taps[1:], start=1):
        place = jnp.where(tap > best, np.uint8(i), place)
        best = lax.max(best, tap)
    return lax.optimization_barrier(place)


def _pick_by_place(g: PoolGeometry, x: jax.Array, dx: jax.Array) -> jax.Array:
    place = _place_of_max(g, x)
    return add_up([jnp.where(place == i, tap, 0) for i, tap in enumerate(_taps(g, dx, 0))])


def _place_by_phases(g: PoolGeometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum of dy over the windows whose maximum a pixel is, phase by phase of the pixels."""
    down, right = phases(g)
    config = ((0, 0, 0), (down.before, down.after, 0), (right.before, right.after, 0), (0, 0, 0))
    place, dy = _place_of_max(g, x), lax.optimization_barrier(dy)
    if any(map(any, config)):
        place = lax.optimization_barrier(lax.pad(place, np.uint8(255), config))
        dy = lax.optimization_barrier(lax.pad(dy, np.zeros((), dy.dtype), config))

    def part(rows: tuple, columns: tuple) -> jax.Array:
        count, terms = (down.size, right.size), []
        for u, i in rows:
            for v, j in columns:
                start = (down.before + i, right.before + j)
                chosen = strided(place, start, count, (1, 1)) == u * g.window[1] + v
                terms.append(jnp.where(chosen, strided(dy, start, count, (1, 1)), 0))
        return add_up(terms) if terms else jnp.zeros((g.x[0], *count, g.x[3]), dy.dtype)

    return interleave([[part(rows, columns) for columns in right.taps] for rows in down.taps], g.x[1:3])


def _is_small(g: PoolGeometry) -> bool:
    # Each pixel of the window is an expression of its own, and its index must fit into a byte.
    return math.prod(g.window) <= 64


MAX_POOL = (dispatch.Row(_is_small, _max_of_taps, "XLA's window loop is not vectorized over channels"),)
PICK = (dispatch.Row(_is_small, _pick_by_place, "XLA visits windows one by one here, too"),)
PLACE = (dispatch.Row(_is_small, _place_by_phases, "XLA's select-and-scatter visits windows one by one"),)

_max_pool = dispatch.primitive("max_pool", lambda g: g.out, _plain_max_pool, MAX_POOL, fold, frozenset({0}))
_pick = dispatch.primitive("max_pool_pick", lambda g: g.out, _plain_pick, PICK, fold, frozenset({0, 1}))
_place = dispatch.primitive("max_pool_place", lambda g: g.x, _plain_place, PLACE, fold, frozenset({0, 1}))
ad.defjvp(_max_pool, lambda dx, x, geometry: _pick.bind(x, dx, geometry=geometry))
ad.defjvp(_pick, None, lambda ddx, x, _, geometry: _pick.bind(x, ddx, geometry=geometry))
ad.defjvp(_place, None, lambda ddy, x, _, geometry: _place.bind(x, ddy, geometry=geometry))
ad.primitive_transposes[_pick] = lambda dy, x, _, geometry: (None, _place.bind(x, dy, geometry=geometry))
ad.primitive_transposes[_place] = lambda dx, x, _, geometry: (None, _pick.bind(x, dx, geometry=geometry))
