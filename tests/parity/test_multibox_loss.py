"""SSD's loss and its gradient against torchvision's ``compute_loss``."""

from types import SimpleNamespace

import jax
import numpy as np
import torch

from cnnjax import losses
from cnnjax.ops import anchors

ROWS = 12


def test_multibox_loss(torchvision):
    from torchvision.models.detection import _utils, ssd
    from torchvision.ops import box_iou

    rng = np.random.default_rng(0)
    default = anchors.default_boxes(anchors.SSD300, (300, 300), [(side, side) for side in (38, 19, 10, 5, 3, 1)])
    counts = (3, 0, ROWS, 1)
    boxes = np.sort(rng.uniform(0, 300, (4, ROWS, 2, 2)), axis=2).reshape(4, ROWS, 4).astype(np.float32)
    labels = rng.integers(0, 20, (4, ROWS)).astype(np.int32)
    outputs = {
        "classes": rng.normal(scale=2, size=(4, len(default), 21)).astype(np.float32),
        "boxes": rng.normal(scale=2, size=(4, len(default), 4)).astype(np.float32),
    }

    theirs = {
        "cls_logits": torch.from_numpy(outputs["classes"]).requires_grad_(),
        "bbox_regression": torch.from_numpy(outputs["boxes"]).requires_grad_(),
    }
    targets = [
        {"boxes": torch.from_numpy(each[:n]), "labels": torch.from_numpy(name[:n].astype(np.int64) + 1)}
        for each, name, n in zip(boxes, labels, counts, strict=True)
    ]
    tensor, matcher = torch.from_numpy(default), _utils.SSDMatcher(0.5)
    none = torch.full((len(default),), -1)
    matches = [matcher(box_iou(each["boxes"], tensor)) if len(each["boxes"]) else none for each in targets]
    peer = SimpleNamespace(box_coder=_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3)
    want = ssd.SSD.compute_loss(peer, targets, theirs, [tensor] * 4, matches)
    (want["classification"] + want["bbox_regression"]).backward()

    def mean(outputs):
        mask = np.arange(ROWS) < np.array(counts)[:, None]
        of_image = jax.vmap(losses.multibox_loss, (0, None, 0, 0, 0))
        loss = of_image(outputs, default, boxes, labels, mask)
        parts = {part: each.sum() / loss.positives.sum() for part, each in loss.parts.items()}
        return parts["class"] + parts["box"], (parts, loss.positives)

    (_, (parts, positives)), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(outputs)
    assert positives.tolist() == [int((each >= 0).sum()) for each in matches]
    np.testing.assert_allclose(parts["class"], want["classification"].detach(), rtol=1e-5)
    np.testing.assert_allclose(parts["box"], want["bbox_regression"].detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient["classes"], theirs["cls_logits"].grad, atol=1e-6)
    np.testing.assert_allclose(gradient["boxes"], theirs["bbox_regression"].grad, atol=1e-6)
