"""Feature maps of a backbone by their total stride."""

import jax
import numpy as np
import promises
import pytest

from cnnjax import models, nn
from cnnjax.types import UserError


@pytest.mark.parametrize("size", [64, 97])
@pytest.mark.parametrize(
    ("name", "deepest", "up"),
    [
        ("resnet50", ("stage2", "stage3", "stage4"), True),
        ("mobilenet_v2", ("block6", "block13", "last"), True),
        ("vgg16", ("conv4_3", "conv5_3", "pool5"), False),
    ],
)
def test_the_deepest_feature_map_of_each_stride(name, deepest, up, size):
    model = models.create(name, num_classes=None)
    images = jax.ShapeDtypeStruct((1, size, size + 3, 3), np.float32)
    _, endpoints = jax.eval_shape(model.apply, promises.abstract(model, images.shape), images)
    found = nn.pyramid(model, endpoints, (8, 16, 32))
    assert all(x is endpoints[name] for x, name in zip(found, deepest, strict=True))
    rounded = [tuple(-(-side // s) if up else side // s for side in images.shape[1:3]) for s in (8, 16, 32)]
    assert [x.shape[1:3] for x in found] == rounded
    assert nn.pyramid(model, endpoints, (32, 8)) == (found[2], found[0])


def test_a_missing_stride_is_answered_with_the_strides_of_the_model():
    with pytest.raises(UserError, match=r"ResNet has no feature map of stride 1, 64: choose among 2, 4, 8, 16, 32$"):
        nn.pyramid(models.create("resnet18"), {}, (1, 8, 64))
