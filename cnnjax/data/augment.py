"""Augmentation on the device: one image in, one image of the same shape out, under ``jax.jit``.

A random operation is a sampled parameter and a deterministic operation, key first (the form of
google-deepmind/dm_pix). Both are written for one image ``float [h, w, c]`` with values in 0…1; `compose`
chains random operations and `per_example` applies the chain to a batch::

    one = compose(partial(random_shift, max_pixels=2), random_flip_left_right)
    augment = partial(per_example, one)  # (key, images [n, h, w, c]) → images [n, h, w, c]

Every deterministic operation returns the image bit for bit at its neutral parameter. Anything but one
float image raises `TypeError`, an impossible range `ValueError`, both while tracing. `mix`, `cut_mix` and
their random forms alone take a whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from cnnjax.types import Array, Key

Op = Callable[[Key, Array], jax.Array]  # (key, image or images) → the same shape


def per_example(op: Op, key: Key, images: Array) -> jax.Array:
    """Applies ``op`` to each image of ``[n, h, w, c]`` with a key of its own.

    Image i gets ``fold_in(key, i)``: its outcome depends on neither n nor the number of devices.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(op)(keys, images)


def compose(*ops: Op) -> Op:
    """One operation that applies ``ops`` from left to right, each with a key of its own."""

    def composed(key: Key, image: Array) -> jax.Array:
        for i, op in enumerate(ops):
            image = op(jax.random.fold_in(key, i), image)
        return jnp.asarray(image)

    return composed


# ---- where the pixels go ----


def shift(image: Array, pixels: Array | tuple[int, int], fill: Array | float = 0.0) -> jax.Array:
    """Moves the content by whole pixels, ``(down, right)``; ``fill``, a scalar or [c], takes the gap."""
    image = _checked(image)
    h, w, _ = image.shape
    rows, columns = jnp.arange(h) - pixels[0], jnp.arange(w) - pixels[1]
    moved = jnp.take(jnp.take(image, rows, axis=0, mode="clip"), columns, axis=1, mode="clip")
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))[None, :]
    return jnp.where(inside[..., None], moved, jnp.asarray(fill, image.dtype))


def random_shift(key: Key, image: Array, max_pixels: int, fill: Array | float = 0.0) -> jax.Array:
    """`shift` by a whole number of pixels in −max_pixels…max_pixels, drawn for each direction."""
    return shift(image, jax.random.randint(key, (2,), -max_pixels, max_pixels + 1), fill)


def flip_left_right(image: Array) -> jax.Array:
    """The mirror image: column 0 becomes the last."""
    return jnp.flip(_checked(image), axis=1)


def random_flip_left_right(key: Key, image: Array, probability: float = 0.5) -> jax.Array:
    """`flip_left_right` with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_left_right(image), image)


def affine(image: Array, matrix: Array, fill: Array | float = 0.0) -> jax.Array:
    """Bilinear resampling: output pixel (row, column) shows the input at ``matrix @ (row, column, 1)``.

    Args:
        image: float [h, w, c].
        matrix: float [2, 3], from output to input, in pixels counted from the image's centre
            ((h−1)/2, (w−1)/2); see `affine_matrix`.
        fill: scalar or [c], the value of every pixel outside the image. SciPy calls this
            ``mode="grid-constant"``. Shrinking does not low-pass the image first.
    """
    image = _checked(image)
    h, w, _ = image.shape
    matrix = jnp.asarray(matrix)
    row, column = (jnp.arange(h) - (h - 1) / 2)[:, None], (jnp.arange(w) - (w - 1) / 2)[None, :]
    # No matmul: accelerators run it in bfloat16 or TF32 by default, which is whole pixels at 224.
    y = matrix[0, 0] * row + matrix[0, 1] * column + matrix[0, 2] + (h - 1) / 2
    x = matrix[1, 0] * row + matrix[1, 1] * column + matrix[1, 2] + (w - 1) / 2

    inside = jax.vmap(lambda plane: map_coordinates(plane, [y, x], order=1, mode="constant"), 2, 2)(image)
    # map_coordinates wants its constant static. Zero outside, it leaves room for the weight of the
    # neighbours that lie there, and a fill of one value per channel.
    covered = jnp.clip(jnp.minimum(y + 1, h - y), 0, 1) * jnp.clip(jnp.minimum(x + 1, w - x), 0, 1)
    return (inside + jnp.asarray(fill) * (1 - covered)[..., None]).astype(image.dtype)


def affine_matrix(
    degrees: Array | float = 0.0, zoom: Array | float = 1.0, offset: Array | tuple[float, float] = (0.0, 0.0)
) -> jax.Array:
    """The [2, 3] matrix for `affine` that zooms, then rotates about the centre, then moves the content.

    Args:
        degrees: positive turns the content counter-clockwise.
        zoom: above 1 enlarges the content.
        offset: pixels ``(down, right)``, fractions allowed.
    """
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    down, right = offset[0], offset[1]
    return jnp.stack(
        [
            jnp.stack([cos, sin, -cos * down - sin * right]),
            jnp.stack([-sin, cos, sin * down - cos * right]),
        ]
    )


def rotate(image: Array, degrees: Array | float, fill: Array | float = 0.0) -> jax.Array:
    """Turns the content about the centre, counter-clockwise, bilinear."""
    return affine(image, affine_matrix(degrees=degrees), fill)


def zoom(image: Array, factor: Array | float, fill: Array | float = 0.0) -> jax.Array:
    """Enlarges the content about the centre by ``factor`` (below 1 shrinks it), bilinear."""
    return affine(image, affine_matrix(zoom=factor), fill)


def translate(image: Array, offset: Array | tuple[float, float], fill: Array | float = 0.0) -> jax.Array:
    """Moves the content by ``(down, right)`` pixels, fractions allowed, bilinear; `shift` is faster."""
    return affine(image, affine_matrix(offset=offset), fill)


def random_rotate(key: Key, image: Array, max_degrees: float, fill: Array | float = 0.0) -> jax.Array:
    """`rotate` by an angle uniform in −max_degrees…max_degrees."""
    return random_affine(key, image, max_degrees=max_degrees, fill=fill)


def random_zoom(key: Key, image: Array, max_change: float, fill: Array | float = 0.0) -> jax.Array:
    """`zoom` by a factor uniform in 1 − max_change … 1 + max_change."""
    return random_affine(key, image, max_change=max_change, fill=fill)


def random_translate(key: Key, image: Array, max_pixels: float, fill: Array | float = 0.0) -> jax.Array:
    """`translate` by an offset uniform in −max_pixels…max_pixels, drawn for each direction."""
    return random_affine(key, image, max_pixels=max_pixels, fill=fill)


def random_affine(
    key: Key,
    image: Array,
    max_degrees: float = 0.0,
    max_change: float = 0.0,
    max_pixels: float = 0.0,
    fill: Array | float = 0.0,
) -> jax.Array:
    """A random rotation, zoom and translation with one resampling: faster and sharper than three.

    The units are those of `random_rotate`, `random_zoom` and `random_translate`.
    """
    for_angle, for_zoom, for_offset = jax.random.split(key, 3)
    degrees = jax.random.uniform(for_angle, (), minval=-max_degrees, maxval=max_degrees)
    offset = jax.random.uniform(for_offset, (2,), minval=-max_pixels, maxval=max_pixels)
    return affine(image, affine_matrix(degrees, _factor(for_zoom, max_change), offset), fill)


# ---- what the pixels are ----


def brightness(image: Array, factor: Array | float) -> jax.Array:
    """``image × factor`` clipped to 0…1, as ``PIL.ImageEnhance.Brightness``: 0 is black, 1 the image."""
    image = _checked(image)
    return jnp.clip(image * jnp.asarray(factor, image.dtype), 0.0, 1.0)


def random_brightness(key: Key, image: Array, max_change: float) -> jax.Array:
    """`brightness` by a factor uniform in 1 − max_change … 1 + max_change."""
    return brightness(image, _factor(key, max_change))


def contrast(image: Array, factor: Array | float) -> jax.Array:
    """Scales the distance from the mean grey, clipped to 0…1, as ``PIL.ImageEnhance.Contrast``.

    0 is a uniform grey, 1 the image. The grey of an RGB image is its luma (ITU-R BT.601), as in PIL; that
    of another number of channels is their mean.
    """
    image = _checked(image)
    factor = jnp.asarray(factor, image.dtype)
    luma = jnp.array([0.299, 0.587, 0.114], image.dtype)
    grey = jnp.sum(image * luma, axis=-1) if image.shape[-1] == 3 else image
    # Not grey + factor × (image − grey), which rounds: factor 1 must return the image exactly.
    return jnp.clip(factor * image + (1 - factor) * jnp.mean(grey), 0.0, 1.0)


def random_contrast(key: Key, image: Array, max_change: float) -> jax.Array:
    """`contrast` by a factor uniform in 1 − max_change … 1 + max_change."""
    return contrast(image, _factor(key, max_change))


def cutout(image: Array, corner: Array | tuple[int, int], side: int, fill: Array | float = 0.0) -> jax.Array:
    """Fills a square of ``side`` pixels whose top left pixel is ``corner`` (row, column).

    The square may lie partly outside the image (DeVries & Taylor 2017, "Improved Regularization of
    Convolutional Neural Networks with Cutout", section 3.2).
    """
    image = _checked(image)
    rows, columns = jnp.arange(image.shape[0]) - corner[0], jnp.arange(image.shape[1]) - corner[1]
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None, :]
    return jnp.where(inside[..., None], jnp.asarray(fill, image.dtype), image)


def random_cutout(key: Key, image: Array, side: int, fill: Array | float = 0.0) -> jax.Array:
    """`cutout` of a square whose centre is drawn among the image's pixels."""
    image = _checked(image)
    centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    return cutout(image, centre - side // 2, side, fill)


# ---- whole batches ----


def mix(images: Array, labels: Array, weight: Array) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the one before it in the batch (the first with the last).

    Args:
        images: float [n, h, w, c].
        labels: float [n, k], one-hot or any distribution.
        weight: float [n] in 0…1, the share of the example itself; 1 changes nothing.

    Returns:
        ``weight × own + (1 − weight) × partner``, images [n, h, w, c] and labels [n, k].
    """

    def mixed(values: Array) -> jax.Array:
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"expected float images and float labels [n, k], got {values.dtype}")
        own, partner = jnp.asarray(values), jnp.roll(values, 1, axis=0)
        share = jnp.reshape(weight, (-1, *(1,) * (own.ndim - 1))).astype(own.dtype)
        return share * own + (1 - share) * partner

    return mixed(images), mixed(labels)


def mixup(key: Key, images: Array, labels_onehot: Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """`mix` with weights drawn from Beta(alpha, alpha) (Zhang et al. 2018, "mixup", section 2).

    Every example draws its own weight, as in the paper's definition (its code shares one per batch):
    the strength of a step's augmentation then varies less. The partner is the neighbour, because batches
    are shuffled already and a roll moves one example between devices where a permutation moves them all.

    Args:
        images: float [n, h, w, c].
        labels_onehot: float [n, k].
        alpha: above 0; the paper uses 0.1…0.4 for ImageNet.
    """
    if alpha <= 0:
        raise ValueError(f"mixup: alpha must be above 0, got {alpha}")
    return mix(images, labels_onehot, jax.random.beta(key, alpha, alpha, (len(images),)))


def cut_mix(images: Array, labels: Array, corners: Array, sizes: Array) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of the example before it in the batch (the first: of the last) into each example.

    Args:
        images: float [n, h, w, c].
        labels: float [n, k].
        corners: int [n, 2], (row, column) of the box's first pixel; what lies outside the image does not count.
        sizes: int [n, 2], (rows, columns).

    Returns:
        Images [n, h, w, c], and labels [n, k] mixed by the share of pixels of each.
    """
    h, w = images.shape[1:3]
    inside = [
        (jnp.arange(size) >= corners[:, i, None]) & (jnp.arange(size) < (corners + sizes)[:, i, None])
        for i, size in enumerate((h, w))
    ]
    pasted = inside[0][:, :, None] & inside[1][:, None, :]
    mixed = jnp.where(pasted[..., None], jnp.roll(images, 1, axis=0), images)
    share = 1 - pasted.sum((1, 2)).astype(labels.dtype)[:, None] / (h * w)
    return mixed, share * labels + (1 - share) * jnp.roll(labels, 1, axis=0)


def cutmix(key: Key, images: Array, labels_onehot: Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """`cut_mix` of boxes around a pixel drawn uniformly, with an area of 1 − Beta(alpha, alpha) of the image's before
    they are clipped to it (Yun et al. 2019, "CutMix", section 3.1); every example draws its own.

    Args:
        images: float [n, h, w, c].
        labels_onehot: float [n, k].
        alpha: above 0; the paper uses 1.
    """
    if alpha <= 0:
        raise ValueError(f"cutmix: alpha must be above 0, got {alpha}")
    for_share, for_centre = jax.random.split(key)
    n, extent = len(images), jnp.array(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(for_share, alpha, alpha, (n, 1)))
    sizes = jnp.round(side * extent).astype(jnp.int32)
    centres = jnp.floor(jax.random.uniform(for_centre, (n, 2)) * extent).astype(jnp.int32)
    return cut_mix(images, labels_onehot, centres - sizes // 2, sizes)


def _checked(image: Array) -> jax.Array:
    image = jnp.asarray(image)
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"expected one image, float [h, w, c], got {image.dtype} {list(image.shape)}")
    return image


def _factor(key: Key, max_change: float) -> jax.Array:
    if not 0 <= max_change < 1:
        raise ValueError(f"max_change must be in 0…1, 1 excluded, got {max_change}")
    return jax.random.uniform(key, (), minval=1 - max_change, maxval=1 + max_change)
