"""Preparation of images against torchvision's: Resize, CenterCrop, ToTensor, Normalize."""

import numpy as np
import pytest
from PIL import Image

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
