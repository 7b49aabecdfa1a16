"""The chapter's first half on scikit-learn's two photos: filters, padding, pooling, invariances, augmentation.

    python experiments/feature_maps.py            # about 10 s on 2 CPU cores
    python experiments/feature_maps.py --smoke    # the same on small photos, hardly faster

Nothing is trained or downloaded. It leaves six pictures and summary.json in the run folder. To expect:
``padding/same_outputs`` 3 and ``padding/valid_outputs`` 2; after a 2×2 max pool an image shifted by one
pixel is the same (``translation/equal_b`` 1.0) and one shifted by two half so (``translation/equal_c``
0.5); over 24 angles the weakest response to a rotated digit is 0.61 of the strongest for one filter, but
0.83 with the maximum over twelve rotated copies of it (``rotation/one_filter``, ``rotation/depth_max``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image

from cnnjax import plot, report
from cnnjax.data import augment
from cnnjax.ops import conv, pool
from cnnjax.types import Array, Key, UserError


@dataclass(frozen=True)
class Config:
    """What to show."""

    run_dir: Path = Path("runs/feature_maps")
    """Where pictures and figures go."""
    copies: int = 12
    """Rotated copies of the filter that the depth-wise max pool chooses from, spread over 360 degrees."""
    samples: int = 11
    """Augmented versions of the flower."""
    max_degrees: float = 15.0
    """Rotation of an augmented photo, degrees at most, either way."""
    max_change: float = 0.2
    """Zoom, brightness and contrast of an augmented photo, as a fraction at most: 0.2 is 0.8 … 1.2."""
    max_shift: float = 0.1
    """Shift of an augmented photo, at most, as a fraction of its height."""
    seed: int = 0
    """Of the augmentation."""
    smoke: bool = False
    """Every fourth pixel of the photos, to see that it works."""


ANGLES = np.arange(0, 360, 15)  # of the digits shown to the rotated filters, degrees

convolve = jax.jit(conv.conv, static_argnames=("strides", "padding"))
max_pool = jax.jit(pool.max_pool, static_argnames=("window",))
avg_pool = jax.jit(pool.avg_pool, static_argnames=("window",))
depth_max_pool = jax.jit(pool.depth_max_pool, static_argnames=("size",))


def load_photos(step: int = 1) -> np.ndarray:
    """china.jpg and flower.jpg in 0…1, every ``step``-th pixel: float32 [2, 427 / step, 640 / step, 3]."""
    photos = np.stack([load_sample_image(name) for name in ("china.jpg", "flower.jpg")])
    return photos[:, ::step, ::step].astype(np.float32) / 255


def line_filters(size: int = 7, channels: int = 3) -> np.ndarray:
    """A vertical and a horizontal line of ones through the middle: HWIO [size, size, channels, 2]."""
    filters = np.zeros((size, size, channels, 2), np.float32)
    filters[:, size // 2, :, 0] = 1
    filters[size // 2, :, :, 1] = 1
    return filters


def line_maps(photos: Array) -> jax.Array:
    """Feature maps [n, h, w, 2] of the two line filters, stride 1, ``"SAME"`` (Fig. 14-5)."""
    return convolve(photos, line_filters())


def padding_figures() -> dict[str, float]:
    """How many outputs a row of 13 gives under a window of 6 and stride 5 (Fig. 14-7), and what VALID skips."""
    row, window = np.ones((1, 13, 1), np.float32), np.ones((6, 1, 1), np.float32)
    outputs = {kind: convolve(row, window, strides=5, padding=kind)[0, :, 0] for kind in ("SAME", "VALID")}
    # A window of ones over ones counts its real pixels: what is missing to 6 is padding.
    return {
        "padding/same_outputs": len(outputs["SAME"]),
        "padding/same_zeros_left": 6 - float(outputs["SAME"][0]),
        "padding/same_zeros_right": 6 - float(outputs["SAME"][-1]),
        "padding/valid_outputs": len(outputs["VALID"]),
        "padding/valid_ignored": 13 - (6 + 5 * (len(outputs["VALID"]) - 1)),
    }


def pooled(photo: Array) -> dict[str, jax.Array]:
    """One photo [h, w, 3] through each kind of pooling (Figs. 14-8, 14-10), by the name of the kind."""
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
    return np.stack([np.asarray(augment.shift(a, (0, right))) for right in range(3)])


def equal_to_first(maps: Array) -> np.ndarray:
    """The share of pixels of each of ``[n, h, w, c]`` that are as in the first: [n]."""
    maps = np.asarray(maps)
    return (maps == maps[0]).mean(axis=(1, 2, 3))


def digit() -> jax.Array:
    """A handwritten 4 of scikit-learn's, twice enlarged, with room to turn in: float [25, 25, 1] in 0…1."""
    image = jnp.asarray(load_digits().images[4], jnp.float32)[..., None] / 16
    large = jnp.clip(jax.image.resize(image, (17, 17, 1), "cubic"), 0, 1)
    return jnp.pad(large, ((4, 4), (4, 4), (0, 0)))


def turned(image: Array, degrees: Array) -> jax.Array:
    """One image [h, w, c], counter-clockwise by each of n angles: [n, h, w, c]."""
    return jax.vmap(augment.rotate, (None, 0))(image, jnp.asarray(degrees, jnp.float32))


@partial(jax.jit, static_argnames="copies")
def rotation_maps(angles: Array, copies: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Digits at n angles under ``copies`` rotated filters, before and after depth-wise pooling (Fig. 14-10).

    The filter is the digit itself, of zero mean: it responds most where it sees itself.

    Returns:
        images [n, 35, 35, 1], feature maps [n, 35, 35, copies], and their depth max pool [n, 35, 35, 1].
    """
    images = turned(jnp.pad(digit(), ((5, 5), (5, 5), (0, 0))), angles)
    kernels = turned(digit(), np.arange(copies) * 360 / copies)
    kernels = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    maps = jnp.maximum(conv.conv(images, jnp.transpose(kernels, (1, 2, 3, 0))), 0)
    return images, maps, pool.depth_max_pool(maps, copies)


def weakest_peak(maps: Array) -> float:
    """The smallest over the largest of the n maximal responses in ``[n, h, w, 1]``; 1 is invariance."""
    peaks = np.asarray(maps).max(axis=(1, 2, 3))
    return float(peaks.min() / peaks.max())


def augmentation(config: Config, height: int) -> augment.Op:
    """(key, photos [n, h, w, 3]) → the same, each turned, zoomed, shifted, mirrored, lit by chance (Fig. 14-12)."""
    one = augment.compose(
        partial(
            augment.random_affine,
            max_degrees=config.max_degrees,
            max_change=config.max_change,
            max_pixels=config.max_shift * height,
        ),
        augment.random_flip_left_right,
        partial(augment.random_brightness, max_change=config.max_change),
        partial(augment.random_contrast, max_change=config.max_change),
    )
    return jax.jit(partial(augment.per_example, one))


def augmented(config: Config, key: Key, photo: Array) -> jax.Array:
    """``config.samples`` random versions of one photo [h, w, 3]: [samples, h, w, 3]."""
    copies = jnp.broadcast_to(photo, (config.samples, *photo.shape))
    return augmentation(config, photo.shape[0])(key, copies)


def line_figure(photos: Array) -> Figure:
    """Each photo (a row) beside its vertical and horizontal feature map."""
    maps = np.asarray(line_maps(photos))
    maps = maps / maps.max(axis=(1, 2), keepdims=True)
    cells = [cell for photo, lines in zip(photos, maps, strict=True) for cell in (photo, *np.moveaxis(lines, -1, 0))]
    return plot.image_grid(cells, ["photo", "vertical lines", "horizontal lines"] * len(photos), 3, cell=2.4)


def pooling_figure(photo: Array) -> Figure:
    """The 64×64 pixels in the middle of a photo through each kind of pooling."""
    row, column = (side // 2 - 32 for side in photo.shape[:2])
    kinds = pooled(photo[row : row + 64, column : column + 64])
    return plot.image_grid(list(kinds.values()), list(kinds), 5)


def translation_figure() -> Figure:
    """A, B and C above their 2×2 max pools, with the share of pixels that are as in A."""
    images = shifted_strokes()
    pools = max_pool(images, 2)
    titles = ["A", "B: A shifted by 1", "C: A shifted by 2"]
    shares = [f"pooled: {share:.0%} as A" for share in equal_to_first(pools)]
    # The chapter draws high values dark.
    return plot.image_grid([1 - image for image in (*images, *np.asarray(pools))], titles + shares, 3, cell=2)


def rotation_figure(copies: int) -> Figure:
    """The digit at 8 angles above the response of one filter and the maximum over its copies, on one scale."""
    images, maps, deep = (np.asarray(x)[::3] for x in rotation_maps(ANGLES, copies))
    rows = {"digit at": images, "one filter": maps[..., :1] / deep.max(), "depth max": deep / deep.max()}
    titles = [f"{angle}°" for angle in ANGLES[::3]]
    titles += [f"{name}: {image.max():.2f}" for name, row in list(rows.items())[1:] for image in row]
    return plot.image_grid(np.concatenate(list(rows.values())), titles, 8)


def augmentation_figure(config: Config, photo: Array) -> Figure:
    """The photo, and random versions of it."""
    versions = augmented(config, jax.random.key(config.seed), photo)
    return plot.image_grid([photo, *np.asarray(versions)], None, 4, 1.5, "one photo, and random versions of it")


def figures(config: Config, photos: Array) -> dict[str, float]:
    """The numbers of summary.json."""
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


def pictures(config: Config, photos: Array) -> Mapping[str, Figure]:
    """All figures, by file name."""
    return {
        "filters.png": plot.feature_maps(line_filters(channels=1)[:, :, 0], ["vertical", "horizontal"]),
        "lines.png": line_figure(photos),
        "pooling.png": pooling_figure(photos[1]),
        "translation.png": translation_figure(),
        "rotation.png": rotation_figure(config.copies),
        "augmentation.png": augmentation_figure(config, photos[1]),
    }


def main(config: Config) -> dict[str, float]:
    """Writes the pictures and the summary; returns the summary."""
    if config.copies < 1 or config.samples < 1 or not 0 <= config.max_change < 1:
        raise UserError("--copies and --samples must be above 0, --max-change in 0 … 1, 1 excluded")
    photos = load_photos(4 if config.smoke else 1)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    report.write_json(config.run_dir / "config.json", report.as_dict(config))
    for name, figure in pictures(config, photos).items():
        plot.save(figure, config.run_dir / name)
    summary = figures(config, photos)
    report.write_json(config.run_dir / "summary.json", summary)
    report.table(f"pictures in {config.run_dir}", [{"figure": k, "value": float(v)} for k, v in summary.items()])
    return summary


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
