"""Weights in torch's files: the same from every format, for every family of torchvision and timm; and VGG's logits."""

import chex
import jax
import numpy as np
import peers
import pytest

from cnnjax import models, weights

PADDED = {"padding": 1, "epsilon": 1e-5}
FAMILIES = {  # our model → its fields, the publisher, and the publisher's name for it
    "alexnet_torchvision": ({}, "torchvision", "alexnet"),
    "googlenet_bn": ({}, "torchvision", "googlenet"),
    "inception_v3": ({}, "torchvision", "inception_v3"),
    "inception_v4": ({}, "timm", "inception_v4"),
    "mobilenet_v1": (PADDED, "timm", "mobilenetv1_100"),
    "mobilenet_v2": (PADDED, "torchvision", "mobilenet_v2"),
    "resnet18": ({}, "torchvision", "resnet18"),
    "senet154": ({}, "timm", "legacy_senet154"),
    "seresnet50": ({}, "timm", "seresnet50"),
    "vgg16": ({}, "torchvision", "vgg16"),
    "xception": (PADDED, "timm", "legacy_xception"),
}


@pytest.fixture
def peer(torchvision, timm):
    def make(publisher, theirs):
        if publisher == "timm":
            return timm.create_model(theirs)
        more = {"init_weights": False} if theirs in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(theirs, weights=None, **more)

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_every_format_gives_the_same(tmp_path, peer, name):
    fields, publisher, theirs = FAMILIES[name]
    state, model = peers.randomize_torch(peer(publisher, theirs)), models.create(name, **fields)
    loaded = []
    for saved in ("zip", "legacy", "safetensors"):
        peers.save_torch(state, tmp_path / saved, saved)
        loaded.append(weights.load(tmp_path / saved, model))
        (tmp_path / saved).unlink()
    for other in loaded[1:]:
        chex.assert_trees_all_equal(loaded[0], other)
    count = sum(x.numel() for key, x in state.state_dict().items() if not key.endswith("num_batches_tracked"))
    assert sum(x.size for x in jax.tree.leaves(loaded[0])) == count


@pytest.mark.parametrize(("name", "theirs"), [("googlenet_bn", "googlenet"), ("inception_v3", "inception_v3")])
def test_auxiliary_heads_stay_behind_where_the_model_has_none(tmp_path, peer, name, theirs):
    peers.save_torch(peers.randomize_torch(peer("torchvision", theirs)), tmp_path / "w.pth", "zip")
    with_aux, without = (weights.load(tmp_path / "w.pth", models.create(name, aux=aux)) for aux in (True, False))
    rest = {key: value for key, value in with_aux["params"].items() if not key.startswith("aux")}
    assert len(rest) < len(with_aux["params"])
    chex.assert_trees_all_equal(rest, without["params"])


def test_a_new_head_of_another_size_also_where_the_model_has_auxiliary_ones(tmp_path, peer):
    peers.save_torch(peers.randomize_torch(peer("torchvision", "googlenet")), tmp_path / "w.pth", "zip")
    whole = weights.load(tmp_path / "w.pth", models.create("googlenet_bn"))["params"]
    new = weights.load(tmp_path / "w.pth", models.create("googlenet_bn", num_classes=3), head="new")["params"]
    assert [new[key]["head"]["dense"]["kernel"].shape for key in ("aux1", "aux2")] == [(1024, 3)] * 2
    assert np.array_equal(new["aux1"]["dense"]["kernel"], whole["aux1"]["dense"]["kernel"])


@pytest.mark.parametrize(("name", "saved"), [("vgg16", "zip"), ("vgg19", "safetensors")])
def test_vgg(torchvision, name, saved):
    """torch flattens the last feature map channel by channel, ours pixel by pixel."""
    make = torchvision.models.get_model
    peers.check_torch(name, lambda: make(name, init_weights=False), (224,), saved=saved, train_size=None)


def test_vgg_of_timm(timm):
    """timm's first dense layer is a convolution of all of the last feature map."""
    peers.check_torch("vgg16", lambda: timm.create_model("vgg16"), (224,), train_size=None)
