"""What networks expect of pixels, by the names that Keras gave the three habits."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array, UserError

Mode = Literal["tf", "torch", "caffe"]

# Of ImageNet's training images: RGB in 0 … 1, and BGR in 0 … 255.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)


def preprocess(images: Array, mode: Mode) -> Array:
    """What a published network was trained on, from pixels; inside ``jax.jit`` too.

    Args:
      images: RGB ``[..., h, w, 3]``, uint8 or float, 0 … 255.
      mode: "tf": x / 127.5 − 1; "torch": x / 255, then mean and standard deviation of ImageNet become 0 and 1, per
        channel; "caffe": BGR minus ImageNet's mean, not scaled.

    Returns:
      float32 of the same shape, of NumPy if ``images`` are, else of JAX.

    Raises:
      UserError: another mode, number of channels, or type.
    """
    if images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(f"preprocess takes RGB images [..., h, w, 3], got shape {images.shape}")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, np.floating):
        raise UserError(f"preprocess takes pixels 0 … 255 as uint8 or float, got {images.dtype}")
    xp = np if isinstance(images, np.ndarray) else jnp
    x = xp.asarray(images, np.float32)
    if mode == "tf":
        return x / np.float32(127.5) - np.float32(1)
    if mode == "torch":
        return (x / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    if mode == "caffe":
        return x[..., ::-1] - np.array(CAFFE_MEAN, np.float32)
    raise UserError(f'preprocess has the modes "tf", "torch" and "caffe", got {mode!r}')
