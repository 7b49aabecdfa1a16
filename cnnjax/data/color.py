"""Color in HSV on the device, in the form of `augment`: a sampled parameter and a deterministic operation.

Hue, saturation and value are in 0…1, hue a share of the circle: ``colorsys``'s convention, of which 0…179 and 0…255 are
OpenCV's. The image is float [h, w, 1 | 3] in 0…1; a gray one has no hue and no saturation.
"""

import jax
import jax.numpy as jnp

from cnnjax.types import Array, Example, Key


def rgb_to_hsv(rgb: Array) -> jax.Array:
    """Converts RGB [..., 3] to hue, saturation, value [..., 3]; hue is 0 where all channels are equal (Smith 1978)."""
    rgb = jnp.asarray(rgb)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value, spread = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    by = jnp.where(spread > 0, spread, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / by,
        jnp.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    saturation = spread / jnp.where(value > 0, value, 1)
    return jnp.stack([(sector / 6) % 1, saturation, value], axis=-1)


def hsv_to_rgb(hsv: Array) -> jax.Array:
    """Inverse of `rgb_to_hsv`; a hue beyond 0…1 goes around the circle."""
    hue, saturation, value = (jnp.asarray(hsv)[..., i] for i in range(3))

    def channel(place: int) -> jax.Array:
        k = (place + 6 * hue) % 6
        return value - value * saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def hsv(
    example: Example, hue: Array | float = 0.0, saturation: Array | float = 1.0, value: Array | float = 1.0
) -> Example:
    """Adds ``hue``, a share of the circle, and multiplies ``saturation`` and ``value``, both clipped to 0…1."""
    image = jnp.asarray(example["image"])
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating) or image.shape[-1] not in (1, 3):
        raise TypeError(f"expected one image, float [h, w, 1 or 3], got {image.dtype} {list(image.shape)}")
    hue, saturation, value = (jnp.asarray(x, image.dtype) for x in (hue, saturation, value))
    if image.shape[-1] == 1:
        return {**example, "image": jnp.clip(image * value, 0, 1)}
    h, s, v = (rgb_to_hsv(image)[..., i] for i in range(3))
    changed = hsv_to_rgb(jnp.stack([h + hue, jnp.clip(s * saturation, 0, 1), jnp.clip(v * value, 0, 1)], axis=-1))
    # The way there and back rounds: neutral parameters must return the image exactly.
    neutral = (hue == 0) & (saturation == 1) & (value == 1)
    return {**example, "image": jnp.where(neutral, image, changed)}


def random_hsv(key: Key, example: Example, hue: float = 0.1, saturation: float = 1.5, exposure: float = 1.5) -> Example:
    """`hsv` with a hue uniform in −hue…hue; saturation and value by 1…limit or, as often, divided by it: Darknet's.

    The defaults are those of YOLO's cfg files. Redmon et al. 2016, section 2.2: "up to a factor of 1.5 in the HSV
    color space".
    """
    if not (0 <= hue <= 0.5 and saturation >= 1 and exposure >= 1):
        raise ValueError(f"hue must be in 0…0.5, the others at least 1, got {hue}, {saturation}, {exposure}")
    for_hue, for_saturation, for_value = jax.random.split(key, 3)
    shift = jax.random.uniform(for_hue, (), minval=-hue, maxval=hue)
    return hsv(example, shift, _scale(for_saturation, saturation), _scale(for_value, exposure))


def _scale(key: Key, limit: float) -> jax.Array:
    """Factor uniform in 1…limit, or one divided by such."""
    for_size, for_way = jax.random.split(key)
    factor = jax.random.uniform(for_size, (), minval=1, maxval=limit)
    return jnp.where(jax.random.bernoulli(for_way), factor, 1 / factor)
