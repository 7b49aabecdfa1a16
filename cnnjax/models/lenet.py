"""LeNet-5 (LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proc. IEEE 86(11), 1998, section II.B and appendix A): the network of 1998, and the form in which it is built today.

    layer  features @ size   kernel   parameters   connected to
    in            1 @ 32×32
    c1            6 @ 28×28   5×5            156
    s2            6 @ 14×14   2×2             12   one coefficient and one bias per channel
    c3           16 @ 10×10   5×5          1,516   the channels of s2 in Table I, _TABLE_I here
    s4           16 @  5×5    2×2             32
    c5          120 @  1×1    5×5         48,120
    f6           84                       10,164
    out          10                            0   squared distances to fixed bitmaps of 7×12 = 84 pixels

It has 60,000 trainable parameters. The squashing function follows the weighted sums of all layers up to f6: c1, c3 and
c5 squash too, not only s2, s4 and f6. Differences from the paper: its bitmaps (Fig. 3) cover the printable ASCII set
and are not in its text, so the ten digits here are drawn anew; the biases start
at zero, which the paper does not specify.
"""

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from cnnjax import nn
from cnnjax.ops import conv as conv_ops
from cnnjax.types import Array, Key, UserError

# Table I: the channels of s2 that each of the 16 features of c3 sees. The first six see three neighbors, the next
# six four neighbors, the next three four that are not all neighbors, the last one all.
_TABLE_I = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# Targets of f6 for the digits 0 to 9, 7 wide and 12 high: # is +1, . is −1.
_BITMAPS = """
.......  ...##..  .#####.  #######  ##...##
.#####.  ..###..  ##...##  .....##  ##...##
##...##  .####..  .....##  ....##.  ##...##
##...##  ...##..  .....##  ...##..  ##...##
##...##  ...##..  ....##.  ..####.  ##...##
##...##  ...##..  ...##..  .....##  #######
##...##  ...##..  ..##...  .....##  .....##
##...##  ...##..  .##....  .....##  .....##
##...##  ...##..  ##.....  .....##  .....##
##...##  ...##..  ##.....  ##...##  .....##
.#####.  .######  #######  .#####.  .....##
.......  .......  .......  .......  .......

#######  ..####.  #######  .#####.  .#####.
##.....  .##....  #######  ##...##  ##...##
##.....  ##.....  .....##  ##...##  ##...##
##.....  ##.....  .....##  ##...##  ##...##
######.  ##.....  ....##.  .#####.  ##...##
.....##  ######.  ....##.  .#####.  .######
.....##  ##...##  ...##..  ##...##  .....##
.....##  ##...##  ...##..  ##...##  .....##
##...##  ##...##  ..##...  ##...##  ....##.
.#####.  ##...##  ..##...  ##...##  ...##..
.......  .#####.  .##....  .#####.  .###...
.......  .......  .##....  .......  .......
"""


def _parse_bitmaps(text: str) -> np.ndarray:
    """``[10, 84]`` float32 of ±1 from two rows of five drawings."""
    digits = []
    for block in text.strip().split("\n\n"):
        columns = zip(*(line.split() for line in block.splitlines()), strict=True)
        digits += ["".join(rows) for rows in columns]
    return np.array([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits], np.float32)


RBF_CODES = _parse_bitmaps(_BITMAPS)  # [10, 84]


def squash(x: jax.Array) -> jax.Array:
    """The paper's squashing function ``A · tanh(S · x)``, A = 1.7159, S = 2/3 (appendix A): f(±1) = ±1."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


def fan_in_uniform(fan_in: float | np.ndarray | None = None) -> Initializer:
    """Uniform between −2.4 / F and 2.4 / F, F the number of inputs of a unit (appendix A of the paper).

    Args:
      fan_in: F, or one F for each entry of the last axis; default: the product of all axes but the last, right for
        kernels ``[*window, in, out]``.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        bound = jnp.asarray(2.4 / (math.prod(shape[:-1]) if fan_in is None else fan_in), dtype)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class TableConv(linen.Module):
    """Layer c3: a 5×5 convolution in which feature j sees only the channels ``table[j]``.

    Parameters: ``kernel [5, 5, connections]``, a window per connection, ordered by feature and then by channel, and
    ``bias [len(table)]``. Input ``[n, h, w, c]``, output ``[n, h − 4, w − 4, len(table)]``.
    """

    table: tuple[tuple[int, ...], ...]
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, x: Array) -> jax.Array:
        sources = np.concatenate([np.asarray(row) for row in self.table])
        counts = np.array([len(row) for row in self.table])
        targets = np.repeat(np.arange(len(self.table)), counts)
        init = fan_in_uniform(25.0 * np.repeat(counts, counts))
        kernel = self.param("kernel", init, (5, 5, len(sources)), jnp.float32)
        bias = self.param("bias", linen.initializers.zeros_init(), (len(self.table),), jnp.float32)
        dtype = jnp.result_type(x, kernel) if self.dtype is None else self.dtype
        dense = jnp.zeros((5, 5, x.shape[-1], len(self.table)), dtype)
        dense = dense.at[:, :, sources, targets].set(kernel.astype(dtype))
        return conv_ops.conv(jnp.asarray(x, dtype), dense, padding="VALID") + bias.astype(dtype)


def rbf_distances(x: jax.Array, codes: Array) -> jax.Array:
    """Output layer, equation 7: ``y_i = Σ_j (x_j − w_ij)²``; ``x [n, d]`` or ``[n, h, w, d]``, ``codes [k, d]``."""
    chex.assert_rank([x, codes], [{2, 4}, 2])
    return jnp.square(x[..., None, :] - codes).sum(-1)


def _as_32(images: Array, window: tuple[int, int] | None) -> jax.Array:
    """Images ``[n, 28, 28, 1]`` or ``[n, 32, 32, 1]`` as 32×32, padded with zeros.

    With a window larger ones as they are; ValueError for other shapes.
    """
    if window is not None and images.shape[1:] != (28, 28, 1):
        nn.check_images(images, 32)
        return jnp.asarray(images)
    if images.ndim != 4 or images.shape[1:] not in ((28, 28, 1), (32, 32, 1)):
        raise ValueError(f"expected images [n, 28, 28, 1] or [n, 32, 32, 1] in [0, 1], got shape {tuple(images.shape)}")
    margin = (32 - images.shape[1]) // 2
    return jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


class LeNet5(linen.Module):
    """LeNet-5 of 1998, exactly (the table above), for images ``[n, 28, 28, 1]`` or ``[n, 32, 32, 1]`` in [0, 1].

    Background is 0 and ink 1. 28 pixels are padded to 32; then, as in the paper, background becomes −0.1 and ink 1.175:
    mean about 0, variance about 1.

    ``apply(variables, images, train=...)`` gives logits ``[n, 10]`` float32 (None without a head), the negative
    distances −y of the output layer: the largest belongs to the nearest code, and softmax(logits) ∝ exp(−y). Endpoints
    are c1, s2, c3, s4 ``[n, h, w, features]``, pooled ``[n, 16]``, the average of s4, c5 ``[n, 120]`` and f6
    ``[n, 84]``, each after squashing. The paper's loss is ``losses.rbf_map_loss``. ``train`` changes nothing.

    Attributes:
      num_classes: 10, the digits; None builds no head.
      window: as in ``LeNet5Modern``: the space displacement network of sec. VII.
      dtype: type computed in; None: float32.

    Raises:
      UserError: ``num_classes`` is neither 10 nor None: the codes are those of the ten digits.
      ValueError: images of another shape.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"c1": 1, "s2": 2, "c3": 2, "s4": 4}

    num_classes: int | None = 10
    window: tuple[int, int] | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        if self.num_classes not in (None, len(RBF_CODES)):
            raise UserError(
                f"lenet5 has output codes for {len(RBF_CODES)} classes, the digits, got "
                f"num_classes={self.num_classes}; lenet5_modern takes any number"
            )
        super().__post_init__()

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        x = 1.275 * _as_32(images, self.window) - 0.1
        init = fan_in_uniform()
        conv = functools.partial(nn.Conv, padding="VALID", kernel_init=init, dtype=self.dtype)
        pool = functools.partial(nn.Subsample, squash, scale_init=fan_in_uniform(4.0), dtype=self.dtype)
        c1 = squash(conv(6, 5, name="c1")(x))
        s2 = pool(name="s2")(c1)
        c3 = squash(TableConv(_TABLE_I, dtype=self.dtype, name="c3")(s2))
        s4 = pool(name="s4")(c3)
        c5 = squash(conv(120, 5, name="c5")(s4))
        c5 = c5.reshape(c5.shape[0], 120) if self.window is None else c5
        f6 = squash(nn.Dense(84, 1, dtype=self.dtype, kernel_init=init, name="f6")(c5))
        endpoints = {
            "c1": c1,
            "s2": s2,
            "c3": c3,
            "s4": s4,
            "pooled": nn.global_avg_pool(s4, self.window),
            "c5": c5,
            "f6": f6,
        }
        if self.num_classes is None:
            return None, endpoints
        return -rbf_distances(f6.astype(jnp.float32), RBF_CODES), endpoints


class LeNet5Modern(linen.Module):
    """LeNet-5 as it is built today, for images ``[n, 28, 28, 1]`` or ``[n, 32, 32, 1]`` in [0, 1].

    Average pooling has no parameters, c3 sees all channels of s2, a dense layer gives the logits, and tanh follows c1,
    c3, c5 and f6, as in the chapter's Table 14-1: 61,706 parameters. 28 pixels are padded to 32 with zeros.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 (None without a head) and the
    endpoints c1, s2, c3, s4 ``[n, h, w, features]``, pooled ``[n, 16]``, the average of s4, c5 ``[n, 120]`` and f6
    ``[n, 84]``. ``train`` changes nothing.

    Attributes:
      num_classes: classes of the head; None builds no head.
      window: window of the top, in positions, see ``nn.to_fully_convolutional``; None: all of s4. With a window, images
        of any height and width from 32 pixels are taken.
      dtype: type computed in; None: float32.

    Raises:
      ValueError: images of another shape.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    aux_weights: ClassVar[Mapping[str, float]] = {}
    strides: ClassVar[Mapping[str, int]] = {"c1": 1, "s2": 2, "c3": 2, "s4": 4}

    num_classes: int | None = 10
    window: tuple[int, int] | None = None
    dtype: Dtype | None = None

    @linen.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        x = _as_32(images, self.window)
        init = linen.initializers.glorot_uniform()  # for tanh
        conv = functools.partial(nn.Conv, padding="VALID", kernel_init=init, dtype=self.dtype)
        dense = functools.partial(nn.Dense, kernel_init=init)
        c1 = jnp.tanh(conv(6, 5, name="c1")(x))
        s2 = nn.avg_pool(c1, 2)
        c3 = jnp.tanh(conv(16, 5, name="c3")(s2))
        s4 = nn.avg_pool(c3, 2)
        c5 = jnp.tanh(dense(120, self.window, dtype=self.dtype, name="c5")(s4))
        f6 = jnp.tanh(dense(84, 1, dtype=self.dtype, name="f6")(c5))
        endpoints = {
            "c1": c1,
            "s2": s2,
            "c3": c3,
            "s4": s4,
            "pooled": nn.global_avg_pool(s4, self.window),
            "c5": c5,
            "f6": f6,
        }
        if self.num_classes is None:
            return None, endpoints
        return dense(self.num_classes, 1, dtype=jnp.float32, name="head")(f6), endpoints


VARIANTS = {"lenet5": LeNet5, "lenet5_modern": LeNet5Modern}
