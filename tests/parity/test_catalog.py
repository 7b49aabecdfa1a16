"""The catalog against torchvision's weights enums and timm's configurations."""

import math

import jax
import numpy as np
import pytest
import torch
from published import create
from torch import nn

from cnnjax import weights
from cnnjax.weights.hub import labels
from cnnjax.weights.hub.catalog import published

ENTRIES = published()
TORCHVISION = {tag: entry for tag, entry in ENTRIES.items() if ".torchvision" in tag and entry.task == "classify"}
TIMM = {tag: entry for tag, entry in ENTRIES.items() if ".timm" in tag}
NAMES = {"alexnet_torchvision": "alexnet", "googlenet_bn": "googlenet"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parameters(entry):
    size = entry.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    params = jax.eval_shape(create(entry).init, jax.random.key(0), image)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_every_file_of_torchvision(torchvision):
    """The catalog has every classifier that torchvision offers for a model of ours, and no other."""
    theirs = {
        kind.url
        for model in {entry.model for entry in TORCHVISION.values()}
        for kind in torchvision.models.get_model_weights(NAMES.get(model, model))
        if kind.meta["categories"]  # VGG-16's other file has no head
    }
    assert {entry.url for entry in TORCHVISION.values()} == theirs


@pytest.mark.parametrize("tag", TORCHVISION)
def test_torchvision(torchvision, tag):
    entry = TORCHVISION[tag]
    kinds = torchvision.models.get_model_weights(NAMES.get(entry.model, entry.model))
    (theirs,) = (kind for kind in kinds if kind.url == entry.url)
    assert theirs.name == ("IMAGENET1K_V2" if tag.endswith("_v2") else "IMAGENET1K_V1")
    assert entry.file == theirs.url.rpartition("/")[2]
    assert entry.file == f"{entry.file.rpartition('-')[0]}-{entry.sha256}.pth"
    assert {"acc@1": entry.top1, "acc@5": entry.top5} == theirs.meta["_metrics"]["ImageNet-1K"]
    assert len(theirs.meta["categories"]) == entry.classes
    assert parameters(entry) == theirs.meta["num_params"]
    transform = theirs.transforms()
    assert (transform.resize_size, transform.crop_size) == ([entry.resize], [entry.image_size])
    assert transform.interpolation.value == entry.resample
    assert (tuple(transform.mean), tuple(transform.std)) == (MEAN, STD)
    assert entry.preprocess == ("tf" if entry.model in ("googlenet_bn", "inception_v3") else "torch")


def test_ssd300_of_torchvision(torchvision):
    entry, theirs = ENTRIES["ssd300_vgg16.torchvision"], torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1
    assert (entry.url, entry.file) == (theirs.url, theirs.url.rpartition("/")[2])
    assert entry.file == f"ssd300_vgg16_coco-{entry.sha256}.pth"
    assert labels.class_names("coco_ids") == tuple(theirs.meta["categories"][1:])
    assert entry.ap == theirs.meta["_metrics"]["COCO-val2017"]["box_map"]
    assert parameters(entry) == theirs.meta["num_params"]
    peer = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).transform
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    prepared, _ = peer([torch.from_numpy(pixels.transpose(2, 0, 1)) / 255])
    assert (peer.fixed_size, tuple(prepared.tensors.shape[2:])) == ((entry.image_size,) * 2, (entry.image_size,) * 2)
    expected = prepared.tensors[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(weights.preprocess(pixels, entry.preprocess), expected, atol=1e-4)


@pytest.mark.parametrize("tag", [tag for tag, entry in ENTRIES.items() if entry.task == "segment"])
def test_segmenters_of_torchvision(torchvision, tag):
    entry = ENTRIES[tag]
    (theirs,) = (kind for kind in torchvision.models.get_model_weights(entry.model) if kind.url == entry.url)
    assert entry.file == f"{entry.model}_coco-{entry.sha256}.pth" == theirs.url.rpartition("/")[2]
    assert theirs.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"] == entry.miou
    assert tuple(theirs.meta["categories"][1:]) == labels.class_names("voc_background")[1:]
    assert theirs.transforms().resize_size == [entry.resize]
    assert (tuple(theirs.transforms().mean), tuple(theirs.transforms().std)) == (MEAN, STD)
    assert parameters(entry) == theirs.meta["num_params"]


def test_names_of_voc(torchvision):
    assert labels.class_names("voc") == tuple(torchvision.models._meta._VOC_CATEGORIES[1:])


@pytest.mark.parametrize("name", ["GoogLeNet", "Inception3"])
def test_preparation_within_the_model(torchvision, name):
    """torchvision's transform and model together prepare pixels as "tf" does."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
    peer = getattr(torchvision.models, name)(transform_input=True, init_weights=False, aux_logits=False)
    x = (torch.from_numpy(pixels.transpose(0, 3, 1, 2)) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    theirs = peer._transform_input(x).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(weights.preprocess(pixels, "tf"), theirs, atol=1e-6)


@pytest.mark.parametrize("tag", TIMM)
def test_timm(timm, tag):
    entry = TIMM[tag]
    name = entry.source.rpartition(" ")[2]
    theirs = timm.get_pretrained_cfg(name)
    if theirs.hf_hub_id:
        assert entry.url == f"https://huggingface.co/{theirs.hf_hub_id}/resolve/main/model.safetensors"
        assert entry.file == f"{name}.safetensors"
    else:
        assert entry.url == theirs.url
        assert entry.file == theirs.url.rpartition("/")[2]
    assert theirs.num_classes == entry.classes
    assert theirs.input_size == (3, entry.image_size, entry.image_size)
    modes = {"tf": ((0.5,) * 3, (0.5,) * 3), "torch": (MEAN, STD)}
    assert (theirs.mean, theirs.std) == modes[entry.preprocess]
    resize, crop = timm.data.create_transform(
        theirs.input_size, interpolation=theirs.interpolation, crop_pct=theirs.crop_pct, crop_mode=theirs.crop_mode
    ).transforms[:2]
    assert (resize.size, tuple(crop.size)) == (entry.resize, (entry.image_size, entry.image_size))
    assert resize.interpolation.value == entry.resample
    with torch.device("meta"):
        peer = timm.create_model(name)
    assert parameters(entry) == sum(p.numel() for p in peer.parameters())
    norms = [module for module in peer.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {create(entry).epsilon}
    assert {1 - norm.momentum for norm in norms} == {create(entry).momentum}
