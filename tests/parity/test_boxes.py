"""Boxes against torchvision's."""

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


@pytest.mark.parametrize(("ours", "theirs"), [("iou", "box_iou"), ("giou", "generalized_box_iou")])
def test_iou(ops, ours, theirs):
    a, b = some(200), some(150)
    want = getattr(ops, theirs)(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(getattr(boxes, ours)(a, b), want, atol=1e-6)


def test_gradient_of_giou(ops):
    import jax

    a, b = some(50), some(50)
    tensor = torch.from_numpy(a).requires_grad_()
    ops.generalized_box_iou_loss(tensor, torch.from_numpy(b), reduction="sum").backward()
    ours = jax.grad(lambda a: (1 - boxes.giou_paired(a, b)).sum())(a)
    np.testing.assert_allclose(ours, tensor.grad, atol=1e-6)


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
