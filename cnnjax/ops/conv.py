"""Convolution as pure functions: dense, grouped, depthwise, separable and transposed.

Inputs are channels last and kernels end in (input, output) channels: NWC/WIO, NHWC/HWIO, NDHWC/DHWIO;
the rank of ``x`` decides. "Convolution" is cross-correlation here, as in equation 14-1 of the chapter.
"""

import jax.numpy as jnp
from jax import Array as JaxArray
from jax import lax

from cnnjax.ops.cpu import conv_primitives
from cnnjax.ops.cpu.dispatch import supports
from cnnjax.ops.cpu.geometry import Geometry
from cnnjax.ops.window import Ints, Padding, check_fits, check_rank, explicit_pads, per_dim
from cnnjax.types import Array

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
) -> JaxArray:
    """Convolution, the chapter's equation 14-1 without its bias.

    ``z[n,i,j,k] = Σ_{u,v,k'} x[n, i·s_h + u·d_h − lo_h, j·s_w + v·d_w − lo_w, k'] · kernel[u,v,k',k]``,
    where x is zero outside the image. With ``groups`` g, the g-th part of the outputs sees only the g-th
    part of the inputs.

    Args:
        x: ``[n, *spatial, c]`` with 1, 2 or 3 spatial dimensions.
        kernel: ``[*window, c / groups, features]``.
        strides: step of the window, in pixels.
        padding: ``"SAME"``, ``"VALID"``, an int, or ``(lo, hi)`` pairs (see ``window.explicit_pads``).
        dilation: distance between two taps of the kernel, in pixels (1 = no holes).
        groups: number of groups of channels.

    Returns:
        ``[n, *out, features]`` in the type to which x and kernel promote.

    Raises:
        ValueError: rank, channels, groups or padding do not fit together; both sides are named.
    """
    dims = _check_channels(x, kernel, groups)
    steps = per_dim(strides, dims, "strides")
    holes = per_dim(dilation, dims, "dilation")
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel.shape[:-2], holes, strict=True))
    pads = explicit_pads(padding, x.shape[1:-1], window, steps)
    check_fits(x.shape[1:-1], window, pads)
    dtype = jnp.result_type(x, kernel)
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    if dims == 2 and set(holes) == {1} and supports(x, kernel):
        return conv_primitives.conv(Geometry(x.shape, kernel.shape, steps, pads, groups), x, kernel)
    return lax.conv_general_dilated(
        x,
        kernel,
        steps,
        pads,
        rhs_dilation=holes,
        dimension_numbers=_LAYOUTS[dims],
        feature_group_count=groups,
    )


def _check_channels(x: Array, kernel: Array, groups: int) -> int:
    """Number of spatial dimensions; ValueError if kernel, channels and groups do not fit x."""
    dims = check_rank(x)
    if kernel.ndim != dims + 2:
        raise ValueError(
            f"expected a kernel of rank {dims + 2}, [*window, in, out], for x {tuple(x.shape)}, "
            f"got {tuple(kernel.shape)}"
        )
    channels, (fan_in, features) = x.shape[-1], kernel.shape[-2:]
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(f"expected groups that divide {channels} input and {features} output channels, got {groups}")
    if channels != fan_in * groups:
        raise ValueError(
            f"expected {fan_in * groups} input channels (kernel {tuple(kernel.shape)}, {groups} groups), "
            f"got {channels} (x {tuple(x.shape)})"
        )
    return dims


def depthwise_conv(
    x: Array, kernel: Array, *, strides: Ints = 1, padding: Padding = "SAME", dilation: Ints = 1
) -> JaxArray:
    """Convolution of each channel alone with its own m kernels.

    Args:
        x: ``[n, *spatial, c]``.
        kernel: ``[*window, 1, c * m]``, the layout of Flax and lax: output ``i * m + j`` is channel i under
            its j-th kernel. Keras' ``[*window, c, m]`` is this array reshaped.
        strides: step of the window, in pixels.
        padding: as in ``conv``.
        dilation: as in ``conv``.

    Returns:
        ``[n, *out, c * m]``.

    Raises:
        ValueError: as ``conv``, and if the kernel does not have this layout.
    """
    dims, channels = check_rank(x), x.shape[-1]
    if kernel.ndim != dims + 2 or kernel.shape[-2] != 1 or kernel.shape[-1] % channels:
        raise ValueError(
            f"expected a depthwise kernel [*window, 1, m * {channels}] of rank {dims + 2} "
            f"for x {tuple(x.shape)}, got {tuple(kernel.shape)}"
        )
    return conv(x, kernel, strides=strides, padding=padding, dilation=dilation, groups=channels)


def separable_conv(
    x: Array,
    depthwise: Array,
    pointwise: Array,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
) -> JaxArray:
    """Depthwise convolution, then 1×1 convolution, with nothing between (Xception, Chollet 2017, sec. 2).

    Args:
        x: ``[n, *spatial, c]``.
        depthwise: ``[*window, 1, c * m]``, as in ``depthwise_conv``.
        pointwise: ``[1, 1, c * m, features]`` (as many ones as spatial dimensions).
        strides: step of the depthwise window, in pixels.
        padding: of the depthwise part, as in ``conv``.
        dilation: of the depthwise part, as in ``conv``.

    Returns:
        ``[n, *out, features]``.

    Raises:
        ValueError: as ``depthwise_conv`` and ``conv``.
    """
    spatial = depthwise_conv(x, depthwise, strides=strides, padding=padding, dilation=dilation)
    return conv(spatial, pointwise, padding="VALID")


def conv_transpose(x: Array, kernel: Array, *, strides: Ints = 1, padding: Padding = "SAME") -> JaxArray:
    """Transposed convolution: zeros are inserted between the pixels of x, then it is convolved.

    It is the adjoint of ``conv`` with the *same* kernel, strides and padding:
    ``⟨conv(a, kernel), x⟩ = ⟨a, conv_transpose(x, kernel)⟩``. So the kernel enters flipped and with its two
    channel axes exchanged, as in Keras' Conv2DTranspose and torch's ConvTranspose2d (lax's own default
    does not flip).

    Args:
        x: ``[n, *spatial, c]``.
        kernel: ``[*window, features, c]``: that of the convolution from features to c channels.
        strides: factor of enlargement.
        padding: that of the convolution transposed. Output sizes for n pixels, window k and stride s:
            ``"SAME"`` n·s; ``"VALID"`` n·s + max(k − s, 0), as Keras; ``(lo, hi)`` (n − 1)·s + k − lo − hi,
            as torch.

    Returns:
        ``[n, *out, features]`` in the type to which x and kernel promote.

    Raises:
        ValueError: rank, channels or padding do not fit together; both sides are named.
    """
    dims = check_rank(x)
    if kernel.ndim != dims + 2 or kernel.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"expected a kernel [*window, features, {x.shape[-1]}] of rank {dims + 2} "
            f"for x {tuple(x.shape)}, got {tuple(kernel.shape)}"
        )
    steps = per_dim(strides, dims, "strides")
    window = kernel.shape[:-2]
    dtype = jnp.result_type(x, kernel)
    if dims == 2 and max(steps) > 1 and not any(k % s for k, s in zip(window, steps, strict=True)):
        return _transposed_by_phases(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), steps, padding)
    flipped = jnp.flip(jnp.asarray(kernel, dtype), range(dims))
    return lax.conv_general_dilated(
        jnp.asarray(x, dtype),
        jnp.swapaxes(flipped, -1, -2),
        (1,) * dims,
        _transposed_pads(x.shape[1:-1], window, steps, padding),
        lhs_dilation=steps,
        dimension_numbers=_LAYOUTS[dims],
    )


def _transposed_by_phases(x: JaxArray, kernel: JaxArray, strides: tuple[int, ...], padding: Padding) -> JaxArray:
    """Transposed convolution as one convolution that computes all pixels of a stride, so that no zero is multiplied.

    Output ``q = j · s + p`` is ``Σ_t x[j − t] · kernel[p + t · s]``: with the taps t of all phases p as features, a
    window of k / s pixels gives the s outputs of a cell. The kernel's k are multiples of s.
    """
    sizes, window = x.shape[1:3], kernel.shape[:2]
    features, channels = kernel.shape[2:]
    taps = [k // s for k, s in zip(window, strides, strict=True)]
    high, wide = strides
    kernel = kernel.reshape(taps[0], high, taps[1], wide, features, channels)
    kernel = jnp.flip(kernel, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(*taps, channels, -1)
    cells = conv(x, kernel, padding=[(t - 1, t - 1) for t in taps])
    n, height, width = cells.shape[:3]
    cells = cells.reshape(n, height, width, high, wide, features).transpose(0, 1, 3, 2, 4, 5)
    whole = cells.reshape(n, height * high, width * wide, features)
    (rows, columns), (top, left) = _transposed_sizes(sizes, window, strides, padding)
    return whole[:, top : top + rows, left : left + columns]


def _transposed_sizes(
    sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], padding: Padding
) -> tuple[list[int], list[int]]:
    """Sizes of the output, and how much of the transposed convolution's whole result lies before it."""
    if padding == "SAME":
        outs = [n * s for n, s in zip(sizes, strides, strict=True)]
    elif padding == "VALID":
        outs = [n * s + max(k - s, 0) for n, k, s in zip(sizes, window, strides, strict=True)]
    else:
        pads = explicit_pads(padding, sizes, window, strides)
        outs = [(n - 1) * s + k - sum(p) for n, k, s, p in zip(sizes, window, strides, pads, strict=True)]
    if min(outs) < 1:
        raise ValueError(f"padding {padding!r} leaves no output for input {sizes}, window {window}")
    return outs, [low for low, _ in explicit_pads(padding, outs, window, strides)]


def _transposed_pads(
    sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], padding: Padding
) -> list[tuple[int, int]]:
    """Padding of the dilated input that makes the plain convolution the adjoint of a padded one."""
    outs, lows = _transposed_sizes(sizes, window, strides, padding)
    result = []
    for n, k, s, out, lo in zip(sizes, window, strides, outs, lows, strict=True):
        before = k - 1 - lo
        dilated = (n - 1) * s + 1
        result.append((before, out + k - 1 - dilated - before))
    return result
