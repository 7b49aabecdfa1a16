"""SSD300 against torchvision's: the same weights, head outputs, default boxes, final detections."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import torch

from cnnjax import models, weights
from cnnjax.ops import nms
from cnnjax.types import UserError

MEAN = np.array([0.48235, 0.45882, 0.40784], np.float32)
SHAPE = (300, 300, 3)


def plain_nms(found, scores, labels, iou_threshold):
    """torchvision's ``batched_nms``, whose compiled operator is not here, in float64."""
    found, labels = found.double().numpy(), labels.numpy()
    low, high = found[:, :2], found[:, 2:]
    area = (high - low).prod(1)
    kept: list[int] = []
    for place in np.argsort(-scores.numpy(), kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[place]]
        sides = np.minimum(high[place], high[rivals]) - np.maximum(low[place], low[rivals])
        common = np.maximum(sides, 0).prod(1)
        if not (common > iou_threshold * (area[place] + area[rivals] - common)).any():
            kept.append(int(place))
        if len(kept) == 200:  # it gives no more
            break
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture(scope="module")
def peer(torchvision):
    with mock.patch("torch.nn.init.xavier_uniform_"), mock.patch("torch.nn.init.kaiming_normal_"):  # drawn below
        peer = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
    peers.randomize_torch(peer)
    with torch.no_grad():
        peer.backbone.scale_weight.uniform_(1, 3, generator=torch.manual_seed(0))
        peer.backbone.features[0].weight /= 64  # pixels reach 255, where activations are to be about 1
        for each in peer.head.modules():
            if isinstance(each, torch.nn.Conv2d):
                each.weight /= 2  # probabilities are to be neither equal nor 1
    return peer.eval()


@pytest.fixture(scope="module")
def variables(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ssd") / "ssd300.pth"
    torch.save(peer.state_dict(), path)
    return weights.load(path, models.create("ssd300_vgg16"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((1, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def found(variables, images):
    """Our head outputs, boxes and scores."""
    model = models.create("ssd300_vgg16")

    def detect(variables, images):
        outputs, _ = model.apply(variables, images)
        return outputs, *model.decode(outputs, SHAPE)

    return jax.jit(detect, compiler_options=peers.FAST)(variables, 255 * (images - MEAN))


def planes(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def theirs_of(peer, images):
    """torchvision's head outputs and default boxes."""
    with torch.no_grad():
        prepared, _ = peer.transform(list(planes(images)))
        features = list(peer.backbone(prepared.tensors).values())
        return peer.head(features), peer.anchor_generator(prepared, features)[0]


def test_every_parameter_of_theirs_is_one_of_ours(peer, variables):
    assert sum(x.size for x in jax.tree.leaves(variables)) == 35_641_826
    assert sum(x.numel() for x in peer.state_dict().values()) == 35_641_826
    np.testing.assert_array_equal(variables["params"]["base"]["norm"]["scale"], peer.backbone.scale_weight.detach())


def test_a_file_of_other_classes_says_how_many(peer, tmp_path):
    """Its convolutions have 21 values for each default box: 20 classes and the background."""
    state = peer.state_dict()
    voc = {key: x[: len(x) // 91 * 21].clone() if "classification" in key else x for key, x in state.items()}
    torch.save(voc, tmp_path / "voc.pth")
    with pytest.raises(UserError, match=r"with num_classes=90: its head has 20 classes: give num_classes=20; or head"):
        weights.load(tmp_path / "voc.pth", models.create("ssd300_vgg16"))


def test_head_outputs_default_boxes_and_decoded_boxes(peer, images, found):
    outputs, decoded, scores = found
    theirs, default = theirs_of(peer, images)
    peers.close(outputs["classes"], theirs["cls_logits"], what="logits")
    peers.close(outputs["boxes"], theirs["bbox_regression"], what="codes")
    np.testing.assert_allclose(models.create("ssd300_vgg16").default_boxes(), default, atol=1e-4, rtol=0)
    np.testing.assert_allclose(scores, theirs["cls_logits"].softmax(-1)[..., 1:], atol=1e-4)
    for i in range(len(images)):
        want = peer.box_coder.decode_single(theirs["bbox_regression"][i], default).clamp(0, 300)
        peers.close(decoded[i], want, what="boxes")


@jax.jit
@jax.vmap
def detections(decoded, scores):
    """Places (class, box) of the final detections: scores above 0.01, 400 best of a class, 200 after suppression."""
    best, places = jax.lax.top_k(scores.T, 400)
    labels = np.repeat(np.arange(scores.shape[1]), 400)
    best, candidates = best.reshape(-1), decoded[places.reshape(-1)]
    best = jnp.where(best > 0.01, best, -np.inf)
    kept, valid = nms.nms(candidates, best, iou_threshold=0.45, max_outputs=200, labels=labels)
    return {"boxes": candidates[kept], "scores": best[kept], "labels": jnp.asarray(labels)[kept]}, valid


def test_final_detections(peer, images, found):
    with torch.no_grad(), mock.patch("torchvision.ops.boxes.batched_nms", plain_nms):
        theirs = peer(list(planes(images)))
    ours, valid = detections(*found[1:])
    for i, want in enumerate(theirs):
        assert valid[i].sum() == len(want["scores"]) == 200
        np.testing.assert_array_equal(ours["labels"][i] + 1, want["labels"])
        np.testing.assert_allclose(ours["scores"][i], want["scores"], atol=1e-4)
        peers.close(ours["boxes"][i], want["boxes"], what="boxes")
