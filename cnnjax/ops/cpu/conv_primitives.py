"""2-D convolution and its two gradients as primitives.

A convolution is linear in its input and in its kernel, and so are its gradients in their arguments. The gradients of
each of the three operations are the other two:

    conv(x, kernel) → y           in x: input_grad(y, kernel)     in kernel: kernel_grad(x, y)
    input_grad(dy, kernel) → dx   in dy: conv(dx, kernel)         in kernel: kernel_grad(dx, dy)
    kernel_grad(x, dy) → dk       in x: input_grad(dy, dk)        in dy: conv(x, dk)
"""

import chex
import jax
from jax.interpreters import ad

from cnnjax.ops.cpu import conv_forms, dispatch
from cnnjax.ops.cpu.geometry import Geometry, fold


def conv(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution: ``x [n, h, w, c]``, ``kernel [*window, c / groups, features]`` → ``y [n, *out, features]``."""
    chex.assert_shape([x, kernel], [g.x, g.kernel])
    return _conv.bind(x, kernel, geometry=g)


def input_grad(g: Geometry, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gradient for the input: ``dy [n, *out, features]``, ``kernel`` → ``dx [n, h, w, c]``."""
    chex.assert_shape([dy, kernel], [g.out, g.kernel])
    return _input_grad.bind(dy, kernel, geometry=g)


def kernel_grad(g: Geometry, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient for the kernel: ``x [n, h, w, c]``, ``dy [n, *out, features]`` → ``dk``, of the kernel's shape."""
    chex.assert_shape([x, dy], [g.x, g.out])
    return _kernel_grad.bind(x, dy, geometry=g)


_IMAGES = frozenset({0})
_conv = dispatch.primitive("conv", lambda g: g.out, conv_forms.plain_conv, conv_forms.CONV, fold, _IMAGES)
_input_grad = dispatch.primitive(
    "conv_input_grad", lambda g: g.x, conv_forms.plain_input_grad, conv_forms.INPUT_GRAD, fold, _IMAGES
)
_kernel_grad = dispatch.primitive(
    "conv_kernel_grad", lambda g: g.kernel, conv_forms.plain_kernel_grad, conv_forms.KERNEL_GRAD
)
ad.defbilinear(
    _conv,
    lambda y, _, kernel, geometry: input_grad(geometry, y, kernel),
    lambda y, x, _, geometry: kernel_grad(geometry, x, y),
)
ad.defbilinear(
    _input_grad,
    lambda dx, _, kernel, geometry: conv(geometry, dx, kernel),
    lambda dx, dy, _, geometry: kernel_grad(geometry, dx, dy),
)
ad.defbilinear(
    _kernel_grad,
    lambda dk, _, dy, geometry: input_grad(geometry, dy, dk),
    lambda dk, x, _, geometry: conv(geometry, x, dk),
)
