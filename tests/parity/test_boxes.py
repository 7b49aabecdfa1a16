"""Boxes against torchvision's."""

import jax
import numpy as np
import pytest
import torch

from cnnjax.ops import boxes

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def ops(torchvision):
    import torchvision.ops

    return torchvision.ops


def some(n):
    return np.sort(RNG.uniform(-20, 300, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("iou", "box_iou"), ("giou", "generalized_box_iou"), ("diou", "distance_box_iou"), ("ciou", "complete_box_iou")],
)
def test_iou(ops, ours, theirs):
    a, b = some(200), some(150)
    want = getattr(ops, theirs)(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(getattr(boxes, ours)(a, b), want, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (boxes.giou_paired, "generalized_box_iou_loss"),
        (boxes.diou_paired, "distance_box_iou_loss"),
        (boxes.ciou_paired, "complete_box_iou_loss"),
    ],
)
def test_losses_and_their_gradients(ops, ours, theirs):
    a, b = some(50), some(50)
    tensor = torch.from_numpy(a).requires_grad_()
    loss = getattr(ops, theirs)(tensor, torch.from_numpy(b), reduction="sum")
    loss.backward()
    value, gradient = jax.value_and_grad(lambda a: (1 - ours(a, b)).sum())(a)
    np.testing.assert_allclose(value, loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad, atol=1e-6)


def test_codes_of_ssd(torchvision):
    from torchvision.models.detection._utils import BoxCoder

    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    a, b = some(200), some(200)
    want = coder.encode_single(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(boxes.encode_ssd(a, b), want, rtol=1e-4, atol=1e-5)
    codes = RNG.normal(scale=8, size=(200, 4)).astype(np.float32)  # some beyond the greatest size
    np.testing.assert_allclose(
        boxes.decode_ssd(codes, b),
        coder.decode_single(torch.from_numpy(codes), torch.from_numpy(b)),
        rtol=1e-5,
        atol=1e-3,
    )


def test_area_and_clip(ops):
    a = some(100)
    np.testing.assert_allclose(boxes.area(a), ops.box_area(torch.from_numpy(a)), rtol=1e-6)
    np.testing.assert_array_equal(boxes.clip(a, 200, 150), ops.clip_boxes_to_image(torch.from_numpy(a), (200, 150)))


@pytest.mark.parametrize("name", ["xyxy_to_cxcywh", "xyxy_to_xywh", "cxcywh_to_xyxy", "xywh_to_xyxy"])
def test_conversions(ops, name):
    a = some(50)
    source, target = name.split("_to_")
    want = ops.box_convert(torch.from_numpy(a), source, target)
    np.testing.assert_allclose(getattr(boxes, name)(a), want, atol=1e-4)
