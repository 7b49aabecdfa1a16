"""The chapter's first half on scikit-learn's two photos: filters, padding, pooling, invariances, augmentation.

    python experiments/feature_maps.py            # about 10 s on 2 CPU cores
    python experiments/feature_maps.py --smoke    # the same on small photos, hardly faster

Nothing is trained or downloaded. It writes six figures and summary.json into the run folder. To expect:
``padding/same_outputs`` 3 and ``padding/valid_outputs`` 2; after a 2×2 max pool an image shifted by one pixel is the
same in all pixels (``translation/equal_b`` 1.0), one shifted by two in half of them (``translation/equal_c`` 0.5); over
24 angles the weakest response to a rotated digit is 0.61 of the strongest for one filter, but 0.83 with the maximum
over twelve rotated copies of it (``rotation/one_filter``, ``rotation/depth_max``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image

from cnnjax import cli, experiment, plot, report, settings
from cnnjax.data import augment
from cnnjax.ops import conv, pool
from cnnjax.types import Array, Key


@dataclass(frozen=True)
class Config:
    """Rotated filters, and the augmentation of a photo."""

    copies: settings.PositiveInt = 12
    """Copies of the filter, rotated evenly over 360 degrees, among which the depth-wise max pool chooses."""
    samples: settings.PositiveInt = 11
    """Augmented versions of the flower."""
    seed: settings.NonNegativeInt = 0
    """Seed of the augmentation."""

    augmentation: tyro.conf.OmitArgPrefixes[settings.Augmentation] = settings.Augmentation(
        flip=True, rotate=15.0, zoom=0.2, shift=0.1, brightness=0.2, contrast=0.2
    )
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


ANGLES = np.arange(0, 360, 15)  # of the digits under the rotated filters, degrees

convolve = jax.jit(conv.conv, static_argnames=("strides", "padding"))
max_pool = jax.jit(pool.max_pool, static_argnames=("window",))
avg_pool = jax.jit(pool.avg_pool, static_argnames=("window",))
depth_max_pool = jax.jit(pool.depth_max_pool, static_argnames=("size",))


def load_photos(step: int = 1) -> np.ndarray:
    """china.jpg and flower.jpg in 0…1, every ``step``-th pixel: float32 [2, 427 / step, 640 / step, 3]."""
    photos = np.stack([load_sample_image(name) for name in ("china.jpg", "flower.jpg")])
    return photos[:, ::step, ::step].astype(np.float32) / 255


def line_filters(size: int = 7, channels: int = 3) -> np.ndarray:
    """Filters with a vertical and a horizontal line of ones through the middle: HWIO [size, size, channels, 2]."""
    filters = np.zeros((size, size, channels, 2), np.float32)
    filters[:, size // 2, :, 0] = 1
    filters[size // 2, :, :, 1] = 1
    return filters


def line_maps(photos: Array) -> jax.Array:
    """Feature maps [n, h, w, 2] of the two line filters, stride 1, ``"SAME"`` (Fig. 14-5)."""
    return convolve(photos, line_filters())


def padding_figures() -> dict[str, float]:
    """Outputs of a row of 13 under a window of 6 and stride 5 (Fig. 14-7), and the pixels that VALID skips."""
    row, window = np.ones((1, 13, 1), np.float32), np.ones((6, 1, 1), np.float32)
    outputs = {kind: convolve(row, window, strides=5, padding=kind)[0, :, 0] for kind in ("SAME", "VALID")}
    # A window of ones over ones counts its real pixels; the others of the 6 are padding.
    return {
        "padding/same_outputs": len(outputs["SAME"]),
        "padding/same_zeros_left": 6 - float(outputs["SAME"][0]),
        "padding/same_zeros_right": 6 - float(outputs["SAME"][-1]),
        "padding/valid_outputs": len(outputs["VALID"]),
        "padding/valid_ignored": 13 - (6 + 5 * (len(outputs["VALID"]) - 1)),
    }


def pooled(photo: Array) -> dict[str, jax.Array]:
    """Results of each kind of pooling for a photo [h, w, 3] (Figs. 14-8, 14-10), by the name of the kind."""
    batch = jnp.asarray(photo)[None]
    average = jnp.broadcast_to(pool.global_avg_pool(batch, keepdims=True), batch.shape)
    return {
        "input": batch[0],
        "max 2×2": max_pool(batch, 2)[0],
        "average 2×2": avg_pool(batch, 2)[0],
        "depth max of R, G, B": depth_max_pool(batch, 3)[0],
        "global average": average[0],
    }


def shifted_strokes() -> np.ndarray:
    """Images A, B and C of Fig. 14-9: one stroke, shifted by 0, 1 and 2 pixels to the right: [3, 8, 8, 1]."""
    a = np.zeros((8, 8, 1), np.float32)
    a[np.arange(8), [4, 4, 2, 2, 2, 2, 4, 4]] = 1
    return np.stack([np.asarray(augment.shift({"image": a}, (0, right))["image"]) for right in range(3)])


def equal_to_first(maps: Array) -> np.ndarray:
    """Share of the pixels of each of n feature maps ``[n, h, w, c]`` that equal those of the first: [n]."""
    maps = np.asarray(maps)
    return (maps == maps[0]).mean(axis=(1, 2, 3))


def digit() -> jax.Array:
    """Handwritten 4 from scikit-learn, enlarged twice, with room for rotation: float [25, 25, 1] in 0…1."""
    image = jnp.asarray(load_digits().images[4], jnp.float32)[..., None] / 16
    large = jnp.clip(jax.image.resize(image, (17, 17, 1), "cubic"), 0, 1)
    return jnp.pad(large, ((4, 4), (4, 4), (0, 0)))


def turned(image: Array, degrees: Array) -> jax.Array:
    """Image [h, w, c] rotated counter-clockwise by each of n angles: [n, h, w, c]."""
    return jax.vmap(augment.rotate, (None, 0))({"image": image}, jnp.asarray(degrees, jnp.float32))["image"]


@partial(jax.jit, static_argnames="copies")
def rotation_maps(angles: Array, copies: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Digits at n angles under ``copies`` rotated filters, before and after depth-wise pooling (Fig. 14-10).

    The filter is the digit itself, less its mean: its response is largest where the image equals it.

    Returns:
        images [n, 35, 35, 1], feature maps [n, 35, 35, copies], and their depth max pool [n, 35, 35, 1].
    """
    images = turned(jnp.pad(digit(), ((5, 5), (5, 5), (0, 0))), angles)
    kernels = turned(digit(), np.arange(copies) * 360 / copies)
    kernels = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    maps = jnp.maximum(conv.conv(images, jnp.transpose(kernels, (1, 2, 3, 0))), 0)
    return images, maps, pool.depth_max_pool(maps, copies)


def weakest_peak(maps: Array) -> float:
    """Smallest of the n maximal responses in ``[n, h, w, 1]``, divided by the largest; 1 is invariance."""
    peaks = np.asarray(maps).max(axis=(1, 2, 3))
    return float(peaks.min() / peaks.max())


def augmented(config: Config, key: Key, photo: Array) -> jax.Array:
    """Random versions of one photo [h, w, 3], with random rotation, zoom, shift, flip, brightness and contrast
    (Fig. 14-12): [samples, h, w, 3]."""
    copies = jnp.broadcast_to(photo, (config.samples, *photo.shape))
    op = config.augmentation.op(photo.shape[0])
    return jax.jit(partial(augment.per_example, op))(key, {"image": copies})["image"]


def line_figure(photos: Array) -> Figure:
    """Figure of each photo beside its feature maps of vertical and horizontal lines, one photo a row."""
    maps = np.asarray(line_maps(photos))
    maps = maps / maps.max(axis=(1, 2), keepdims=True)
    cells = [cell for photo, lines in zip(photos, maps, strict=True) for cell in (photo, *np.moveaxis(lines, -1, 0))]
    return plot.image_grid(cells, ["photo", "vertical lines", "horizontal lines"] * len(photos), 3, cell=2.4)


def pooling_figure(photo: Array) -> Figure:
    """Figure of the 64×64 pixels in the middle of a photo after each kind of pooling."""
    row, column = (side // 2 - 32 for side in photo.shape[:2])
    kinds = pooled(photo[row : row + 64, column : column + 64])
    return plot.image_grid(list(kinds.values()), list(kinds), 5)


def translation_figure() -> Figure:
    """Figure of A, B and C above their 2×2 max pools, with the share of pixels that equal A's."""
    images = shifted_strokes()
    pools = max_pool(images, 2)
    titles = ["A", "B: A shifted by 1", "C: A shifted by 2"]
    shares = [f"pooled: {share:.0%} as A" for share in equal_to_first(pools)]
    # High values are dark, as in the chapter.
    return plot.image_grid([1 - image for image in (*images, *np.asarray(pools))], titles + shares, 3, cell=2)


def rotation_figure(copies: int) -> Figure:
    """Figure of the digit at 8 angles above the response of one filter and the maximum over its copies."""
    images, maps, deep = (np.asarray(x)[::3] for x in rotation_maps(ANGLES, copies))
    rows = {"digit at": images, "one filter": maps[..., :1] / deep.max(), "depth max": deep / deep.max()}
    titles = [f"{angle}°" for angle in ANGLES[::3]]
    titles += [f"{name}: {image.max():.2f}" for name, row in list(rows.items())[1:] for image in row]
    return plot.image_grid(np.concatenate(list(rows.values())), titles, 8)


def augmentation_figure(config: Config, photo: Array) -> Figure:
    """Figure of the photo and random versions of it."""
    versions = augmented(config, jax.random.key(config.seed), photo)
    return plot.image_grid([photo, *np.asarray(versions)], None, 4, 1.5, "one photo, and random versions of it")


def figures(config: Config, photos: Array) -> dict[str, float]:
    """Numbers of summary.json."""
    shares = equal_to_first(max_pool(shifted_strokes(), 2))
    _, maps, deep = rotation_maps(ANGLES, config.copies)
    china = pool.global_avg_pool(photos)[0]
    return {
        **padding_figures(),
        "translation/equal_b": float(shares[1]),
        "translation/equal_c": float(shares[2]),
        "rotation/one_filter": weakest_peak(maps[..., :1]),
        "rotation/depth_max": weakest_peak(deep),
        **{f"global_average/china_{name}": float(china[i]) for i, name in enumerate(("red", "green", "blue"))},
    }


PICTURES: Mapping[str, Callable[[Config, Array], Figure]] = {
    "filters.png": lambda config, photos: plot.feature_maps(
        line_filters(channels=1)[:, :, 0], ["vertical", "horizontal"]
    ),
    "lines.png": lambda config, photos: line_figure(photos),
    "pooling.png": lambda config, photos: pooling_figure(photos[1]),
    "translation.png": lambda config, photos: translation_figure(),
    "rotation.png": lambda config, photos: rotation_figure(config.copies),
    "augmentation.png": lambda config, photos: augmentation_figure(config, photos[1]),
}


def main(config: Config) -> dict[str, float]:
    """Writes the summary and the figures; returns the summary."""
    config = experiment.resolve(config, "feature_maps")
    photos = load_photos(4 if config.output.smoke else 1)
    with experiment.opened(config, {}) as run:
        summary = figures(config, photos)
        run.finish(summary)
        experiment.draw(run, {name: partial(draw, config, photos) for name, draw in PICTURES.items()})
    report.table(f"pictures in {run.dir}", [{"figure": k, "value": float(v)} for k, v in summary.items()])
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
