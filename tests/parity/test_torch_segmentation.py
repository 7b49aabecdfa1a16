"""FCN and DeepLabv3 on ResNet with torchvision's state_dict, read strictly: the same logits, auxiliary ones too."""

import jax
import numpy as np
import pytest
import torch
from peers import close, images

from cnnjax import models, nn, weights
from cnnjax.ops import resize
from cnnjax.types import UserError


@pytest.fixture(scope="module", params=["fcn_resnet50", "deeplabv3_resnet50"])
def peer(request, torchvision, tmp_path_factory):
    """Name, torchvision's network with random weights and statistics, and the file of them."""
    torch.manual_seed(0)
    make = getattr(torchvision.models.segmentation, request.param)
    theirs = make(weights=None, weights_backbone=None, aux_loss=True).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.6, 1.4)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    file = tmp_path_factory.mktemp("torch") / f"{request.param}.pth"
    torch.save(theirs.state_dict(), file)
    return request.param, theirs, file


@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_logits_are_torchvisions(peer, size):
    name, theirs, file = peer
    model = models.create(name)
    variables = weights.load(file, model)
    x = images((*size, 3), 2)
    logits, endpoints = jax.jit(model.apply)(variables, x)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    close(logits, expected["out"].numpy().transpose(0, 2, 3, 1))
    close(endpoints["aux"], expected["aux"].numpy().transpose(0, 2, 3, 1), what="aux")


def test_the_auxiliary_head_may_be_left_out_and_nothing_else(peer, tmp_path):
    name, theirs, file = peer
    variables = weights.load(file, models.create(name, aux=False))
    assert "aux" not in variables["params"]
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("aux")}
    torch.save(state, short := tmp_path / "short.pth")
    weights.load(short, models.create(name, aux=False))
    with pytest.raises(UserError, match="aux"):
        weights.load(short, models.create(name))


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_interpolation_and_pixel_shuffle_are_torchs(factor):
    x = images((5, 7, 2 * factor**2), 2)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(theirs, scale_factor=factor, mode="bilinear").numpy()
    np.testing.assert_allclose(resize.bilinear(x, (5 * factor, 7 * factor)), expected.transpose(0, 2, 3, 1), atol=2e-6)
    layer = nn.BilinearUp(x.shape[-1], factor)
    ours = layer.apply(layer.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 3, 1), atol=2e-6)
    shuffled = torch.nn.functional.pixel_shuffle(theirs, factor).numpy()
    np.testing.assert_array_equal(resize.pixel_shuffle(x, factor), shuffled.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("factor", [2, 3])
def test_unpooling_is_torchs(factor):
    before = np.random.default_rng(0).integers(0, 9, (2, 6 * factor, 5 * factor, 3)).astype(np.float32)  # many ties
    values = np.random.default_rng(1).normal(size=(2, 6, 5, 3)).astype(np.float32)
    theirs = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (before, values)]
    _, places = torch.nn.functional.max_pool2d(theirs[0], factor, return_indices=True)
    expected = torch.nn.functional.max_unpool2d(theirs[1], places, factor).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(resize.unpool(values, before), expected)
