"""Preparation of images for published networks: Keras' three modes by their names, Darknet's, and that of SSD300."""

from typing import Literal

import chex
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array, UserError

Mode = Literal["unit", "tf", "torch", "caffe", "ssd"]

# Statistics of ImageNet's training images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, 0 … 1
CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, 0 … 255
SSD_MEAN = (0.48235, 0.45882, 0.40784)  # RGB, 0 … 1


def preprocess(images: Array, mode: Mode) -> Array:
    """Pixels in the range that a published network was trained on; works inside ``jax.jit`` too.

    Source: ``preprocess_input`` of keras.applications; for "torch", torchvision's ``Normalize``.

    Args:
      images: RGB, [..., h, w, 3], uint8 or float, 0 … 255.
      mode: "tf": x / 127.5 − 1; "torch": x / 255, minus ImageNet's mean, divided by its standard deviation, per
        channel; "caffe": BGR minus ImageNet's mean, not scaled; "ssd": the same in RGB, with the mean of torchvision's
        SSD300; "unit": x / 255 (Darknet).

    Returns:
      float32 of the same shape: a NumPy array if ``images`` is one, else a JAX array.

    Raises:
      AssertionError: another shape.
      UserError: another mode or type; floats in a NumPy array that leave 0 … 255, or all lie in 0 … 1.
    """
    chex.assert_shape(images, (..., None, None, 3))
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, np.floating):
        raise UserError(f"preprocess takes pixels 0 … 255 as uint8 or float, got {images.dtype}")
    if isinstance(images, np.ndarray) and images.dtype != np.uint8 and images.size:
        low, high = images.min(), images.max()
        if not (low >= 0 and high <= 255) or 0 < high <= 1:
            raise UserError(f"preprocess takes pixels 0 … 255, got floats {low:g} … {high:g}: scale or clip them")
    xp = np if isinstance(images, np.ndarray) else jnp
    x = xp.asarray(images, np.float32)
    if mode == "tf":
        return x / np.float32(127.5) - np.float32(1)
    if mode == "torch":
        return (x / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    if mode == "caffe":
        return x[..., ::-1] - np.array(CAFFE_MEAN, np.float32)
    if mode == "ssd":
        return x - np.array(SSD_MEAN, np.float32) * np.float32(255)
    if mode == "unit":
        return x / np.float32(255)
    raise UserError(f'preprocess has the modes "unit", "tf", "torch", "caffe" and "ssd", got {mode!r}')
