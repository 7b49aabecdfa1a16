"""Preparation of images against torchvision's: Resize, CenterCrop, ToTensor, Normalize."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import views
from cnnjax.data.transforms import resize_and_crop
from cnnjax.weights.hub.preprocess import MEAN, STD, preprocess

SIZES = [(320, 427), (427, 320), (256, 256), (224, 224), (225, 333), (31, 57), (57, 31), (500, 256), (1000, 37)]


@pytest.fixture(scope="module")
def transforms(torchvision):
    from torchvision import transforms

    return transforms


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (232, 224), (342, 299), (224, 224), (33, 32), (238, 224)])
def test_resize_and_crop_gives_the_same_bytes(transforms, resize, size, resample):
    interpolation = transforms.InterpolationMode(resample)
    theirs = transforms.Compose([transforms.Resize(resize, interpolation), transforms.CenterCrop(size)])
    rng = np.random.default_rng(size)
    for height, width in (*SIZES, *rng.integers(20, 400, (12, 2)).tolist()):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ours = resize_and_crop(resize, size, resample)({"image": image})["image"]
        np.testing.assert_array_equal(ours, np.asarray(theirs(Image.fromarray(image))), f"{height}×{width}")


def test_torch_mode_is_normalize(transforms):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(Image.fromarray(image))
    np.testing.assert_array_equal(preprocess(image, "torch"), theirs.permute(1, 2, 0).numpy())


def test_presets_of_published_weights_are_ours(torchvision):
    """The complete preparation that torchvision publishes for its ResNet-50s, on a photo."""
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("flower.jpg")
    for weights, resize in (("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232)):
        preset = torchvision.models.ResNet50_Weights[weights].transforms()
        ours = preprocess(resize_and_crop(resize, 224)({"image": photo})["image"], "torch")
        np.testing.assert_array_equal(ours, preset(Image.fromarray(photo)).permute(1, 2, 0).numpy())


def crop_case(seed):
    """Image of a random size with a few random boxes."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 200, 2).tolist()
    corners = np.sort(rng.uniform(0, (width, height), (rng.integers(1, 9), 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0] - 0.5, corners[:, 1] + 0.5], axis=1).clip(0, [width, height] * 2)
    return {"image": rng.integers(0, 256, (height, width, 3), np.uint8), "boxes": boxes.astype(np.float32)}


def test_crops_with_boxes_keep_the_boxes_and_pixels_that_torchvision_keeps(torchvision):
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    torch.manual_seed(0)
    theirs, changed, ours = v2.RandomIoUCrop(), [], []
    for seed in range(200):
        before = crop_case(seed)
        height, width = before["image"].shape[:2]
        kind = tv_tensors.BoundingBoxes(torch.tensor(before["boxes"]), format="XYXY", canvas_size=(height, width))
        image = Image.fromarray(before["image"])
        drawn = theirs.make_params([image, kind])
        window = (0.0, 0.0, float(width), float(height))
        changed.append(bool(drawn))
        ours.append(views.iou_crop()(np.random.default_rng(seed), window, before["boxes"].astype(float)) != window)
        if not drawn:
            continue
        part = (drawn["left"], drawn["top"], drawn["left"] + drawn["width"], drawn["top"] + drawn["height"])
        fixed = lambda rng, window, boxes, part=part: tuple(map(float, part))  # noqa: E731
        new = views.random_view(64, fixed, flip=0.0, centers=True)(np.random.default_rng(0), before)
        resize = v2.Resize((64, 64))
        # At the border of the part, PIL looks at the pixels beside it, and torchvision has cut them off.
        low, left = (64 // drawn[side] + 2 for side in ("height", "width"))
        inner = np.s_[low:-low, left:-left]
        want = np.asarray(resize(theirs.transform(image, drawn)))
        np.testing.assert_allclose(new["image"][inner], want[inner].astype(int), atol=1)
        boxes = resize(theirs.transform(kind, drawn)).numpy()
        np.testing.assert_array_equal(new["box_mask"], drawn["is_within_crop_area"].numpy())
        np.testing.assert_allclose(new["boxes"][new["box_mask"]], boxes[new["box_mask"]], atol=1e-3)
    assert 100 < sum(changed) < 200
    assert abs(sum(changed) - sum(ours)) < 25  # they draw by the same rule
