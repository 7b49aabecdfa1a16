"""Host transforms of an image and its boxes: ``(image, boxes [k, 4]) → (image, boxes [k, 4], keep [k])``, by PIL.

Images are uint8 [h, w, 1 | 3], boxes float32 xyxy in pixels. Boxes move with the pixels and are clipped to the new
image. ``keep`` is False for a box of which less than ``min_visible`` of its area is left in it, and for one without
area; use it on boxes and labels alike. A random transform is a sampled parameter and a deterministic transform, the
generator first.
"""

import numpy as np
from PIL import Image

from cnnjax.types import UserError

Moved = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, boxes [k, 4], keep [k]
Window = tuple[float, float, float, float]  # left, top, right, bottom in pixels

MIN_VISIBLE = 0.25  # less of an object can hardly be told; what is left would teach a box nobody can see


def squeeze(image: np.ndarray, boxes: np.ndarray, size: int) -> Moved:
    """`host.squeeze`: to ``size`` × ``size``, whatever that does to the proportions; bilinear."""
    height, width = image.shape[:2]
    return crop(image, boxes, (0, 0, width, height), size, size, 0.0)


def resize_and_crop(
    image: np.ndarray, boxes: np.ndarray, resize: int, size: int, min_visible: float = MIN_VISIBLE
) -> Moved:
    """`host.resize_and_crop`: shorter side to ``resize`` (bilinear), then the central square of ``size`` pixels.

    Raises:
      UserError: ``size`` is larger than ``resize``.
    """
    if size > resize:
        raise UserError(f"no square of {size} pixels can be cut where the shorter side has {resize}")
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = int(resize * height / short), int(resize * width / short)
    corner = round((new_height - size) / 2), round((new_width - size) / 2)
    return _resized_and_cut(image, boxes, (new_height, new_width), corner, size, min_visible)


def center_crop(image: np.ndarray, boxes: np.ndarray, size: int, min_visible: float = MIN_VISIBLE) -> Moved:
    """`host.center_crop`: shorter side to ``size`` (bilinear, proportions kept), then the central square."""
    height, width = image.shape[:2]
    factor = size / min(height, width)
    height, width = max(size, round(height * factor)), max(size, round(width * factor))
    return _resized_and_cut(
        image, boxes, (height, width), ((height - size) // 2, (width - size) // 2), size, min_visible
    )


def crop(
    image: np.ndarray,
    boxes: np.ndarray,
    window: Window,
    height: int,
    width: int,
    min_visible: float = MIN_VISIBLE,
) -> Moved:
    """What is in ``window`` to ``height`` × ``width``, bilinear.

    Raises:
      UserError: the window is empty or leaves the image.
    """
    left, top, right, bottom = window
    if not (0 <= left < right <= image.shape[1] and 0 <= top < bottom <= image.shape[0]):
        raise UserError(
            f"the window {window} (left, top, right, bottom) is not inside an image of {image.shape[1]}×"
            f"{image.shape[0]} pixels (width × height)"
        )
    scale = width / (right - left), height / (bottom - top)
    pixels = _resized(image, height, width, window)
    return pixels, *_moved(boxes, scale, (-left * scale[0], -top * scale[1]), pixels.shape, min_visible)


def random_window(
    rng: np.random.Generator,
    height: int,
    width: int,
    share: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Window:
    """A window of whole pixels in an image (Szegedy et al. 2015, section 6).

    Args:
      share: of the image's area, uniform between these.
      ratio: width to height, its logarithm uniform between these. Where ten draws do not fit, the largest central
        window with the nearest ratio that does.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = max(1, round(np.sqrt(area * aspect))), max(1, round(np.sqrt(area / aspect)))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = np.clip(width / height, *ratio)
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    size: int,
    share: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    min_visible: float = MIN_VISIBLE,
) -> Moved:
    """`crop` of a `random_window` to ``size`` × ``size``."""
    window = random_window(rng, image.shape[0], image.shape[1], share, ratio)
    return crop(image, boxes, window, size, size, min_visible)


def letterbox(image: np.ndarray, boxes: np.ndarray, size: int, fill: int = 128) -> Moved:
    """The whole image in the middle of a square of ``size`` pixels, proportions kept, ``fill`` around it; bilinear."""
    height, width = image.shape[:2]
    factor = size / max(height, width)
    new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    pixels = np.full((size, size, image.shape[2]), fill, np.uint8)
    pixels[top : top + new_height, left : left + new_width] = _resized(image, new_height, new_width)
    return pixels, *_moved(boxes, (new_width / width, new_height / height), (left, top), pixels.shape, 0.0)


def flip_left_right(image: np.ndarray, boxes: np.ndarray) -> Moved:
    """The mirror image: column 0 becomes the last."""
    mirrored, keep = _moved(boxes, (-1, 1), (image.shape[1], 0), image.shape, 0.0)
    return image[:, ::-1], mirrored, keep


def random_flip_left_right(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, probability: float = 0.5
) -> Moved:
    """`flip_left_right` with the given probability."""
    if rng.random() < probability:
        return flip_left_right(image, boxes)
    return image, *_moved(boxes, (1, 1), (0, 0), image.shape, 0.0)


def _resized(image: np.ndarray, height: int, width: int, window: Window | None = None) -> np.ndarray:
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(pil.resize((width, height), Image.Resampling.BILINEAR, window)).reshape(height, width, -1)


def _resized_and_cut(
    image: np.ndarray,
    boxes: np.ndarray,
    shape: tuple[int, int],
    corner: tuple[int, int],
    size: int,
    min_visible: float,
) -> Moved:
    """To ``shape``, of which the square of ``size`` pixels from ``corner`` (row, column) on."""
    top, left = corner
    pixels = _resized(image, *shape)[top : top + size, left : left + size]
    scale = shape[1] / image.shape[1], shape[0] / image.shape[0]
    return pixels, *_moved(boxes, scale, (-left, -top), pixels.shape, min_visible)


def _moved(
    boxes: np.ndarray,
    scale: tuple[float, float],
    offset: tuple[float, float],
    shape: tuple[int, ...],
    min_visible: float,
) -> tuple[np.ndarray, np.ndarray]:
    """``boxes × scale + offset`` (x, y) clipped to an image of ``shape``, and which are to be kept."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    moved = boxes * np.array([*scale, *scale], np.float32) + np.array([*offset, *offset], np.float32)
    if scale[0] < 0:
        moved = moved[:, [2, 1, 0, 3]]
    clipped = moved.clip(0, np.array([shape[1], shape[0], shape[1], shape[0]], np.float32))
    left, whole = _area(clipped), _area(moved)
    return clipped, (left > 0) & (left >= min_visible * whole)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
