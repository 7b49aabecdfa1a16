"""Mixing on the device: whole batches of images and labels in and out, under ``jax.jit``.

A random operation is a sampled parameter and a deterministic operation, key first, as in `augment`. The partner of an
example is the one before it in the batch.
"""

import chex
import jax
import jax.numpy as jnp

from cnnjax.types import Array, Key


def mix(images: Array, labels: Array, weight: Array) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the one before it in the batch (the first with the last).

    Images are float [n, h, w, c], labels float [n, k], one-hot or any distribution; ``weight`` [n] in 0…1 is the share
    of the example itself.
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
    the strength of a step's augmentation then varies less. The partner is the neighbor, because batches
    are shuffled already and a roll moves one example between devices, a permutation all of them.
    ``alpha`` is above 0; the paper uses 0.1…0.4 for ImageNet.
    """
    if alpha <= 0:
        raise ValueError(f"mixup: alpha must be above 0, got {alpha}")
    return mix(images, labels_onehot, jax.random.beta(key, alpha, alpha, (len(images),)))


def cut_mix(images: Array, labels: Array, corners: Array, sizes: Array) -> tuple[jax.Array, jax.Array]:
    """Pastes into each example a box of the one before it in the batch (into the first, of the last).

    ``corners`` int [n, 2] are (row, column) of the boxes' first pixels, ``sizes`` their (rows, columns); parts
    outside the image do not count. Labels [n, k] are mixed by the share of pixels of each.
    """
    chex.assert_rank([images, labels], [4, 2])
    chex.assert_shape([corners, sizes], (len(images), 2))
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
    they are clipped to it (Yun et al. 2019, "CutMix", section 3.1); every example draws its own. ``alpha`` is above 0;
    the paper uses 1.
    """
    if alpha <= 0:
        raise ValueError(f"cutmix: alpha must be above 0, got {alpha}")
    for_share, for_center = jax.random.split(key)
    n, extent = len(images), jnp.array(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(for_share, alpha, alpha, (n, 1)))
    sizes = jnp.round(side * extent).astype(jnp.int32)
    centers = jnp.floor(jax.random.uniform(for_center, (n, 2)) * extent).astype(jnp.int32)
    return cut_mix(images, labels_onehot, centers - sizes // 2, sizes)
