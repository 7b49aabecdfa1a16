"""Images with a painted rectangle, whose place is known, for tests of what moves pixels."""

import numpy as np
from hypothesis import strategies as st

BOX = (30, 40, 90, 70)  # in an image of 160×120


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(box=BOX, height=120, width=160, channels=3):
    """uint8 zeros with 255 in the box."""
    image = np.zeros((height, width, channels), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    return image, np.array([box], np.float32)


def example(*args, **options):
    """Example with the image of `picture`; the mask of its box is its segmentation and its only instance mask."""
    image, boxes = picture(*args, **options)
    mask = image[..., 0] // 255
    return {"image": image, "boxes": boxes, "segmentation": mask, "instance_masks": mask[None], "label": np.int32(5)}


def extent(image):
    """(left, top, right, bottom) of the painted pixels, in fractions of pixels: mass and center of the profiles."""
    paint = np.asarray(image, np.float64)[..., 0] / np.max(image)
    sides = []
    for profile in (paint.max(0), paint.max(1)):
        size = profile.sum()
        center = (profile * (np.arange(len(profile)) + 0.5)).sum() / size
        sides.append((center - size / 2, center + size / 2))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def assert_masks_on_the_box(new):
    shape = new["image"].shape[:2]
    assert (new["segmentation"].shape, new["instance_masks"].shape) == (shape, (1, *shape))
    for mask in (new["segmentation"] == 1, new["instance_masks"][0]):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(new["boxes"][0], found, atol=1)


# ---- properties ----

SIDES = st.integers(24, 90)


@st.composite
def examples(draw):
    """Example with a painted rectangle of at least 8×8 pixels."""
    height, width = draw(SIDES), draw(SIDES)
    left, top = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    right, bottom = draw(st.integers(left + 8, width)), draw(st.integers(top + 8, height))
    return example((left, top, right, bottom), height, width)


def assert_box_on_the_mask(box, mask):
    """Checks that the box is that of the mask to a pixel; a box narrower than a pixel may hold no pixel's center."""
    if not mask.any():
        assert min(box[2] - box[0], box[3] - box[1]) < 1
        return
    np.testing.assert_allclose(box, mask_box(mask), atol=1)


def mask_box(mask):
    """Box around a mask, zeros where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0]
