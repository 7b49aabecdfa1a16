"""Rules of every family: each array has its place in a publisher's file, and a file asks for fields of the model."""

import collections
import functools
import re

import flax.linen as linen
import jax
import numpy as np
import pytest
from published import create

from cnnjax import models, weights
from cnnjax.models.resnet import ResNet
from cnnjax.types import UserError
from cnnjax.weights import layouts, rules

# Further variants for which there are files of weights, beside those with a name.
TORCH = [(name, {"padding": 1}) for name in ("mobilenet_v1", "mobilenet_v2", "xception")]
OTHERS = [*TORCH, ("inception_v3", {"aux": False, "count_include_pad": False})]


def kind(label):
    return "keras" if label.startswith("keras") else "torch"


def agrees(model, layout):
    return all(getattr(model, field) == value for field, value in layout.fields.items())


@pytest.mark.exhaustive
def test_every_array_has_a_place_of_its_own_in_the_publishers_file_and_every_rule_a_use():
    used, rows = collections.defaultdict(set), {}
    for name, fields in [*((name, {}) for name in models.names()), *OTHERS]:
        model = models.create(name, **fields)
        known = layouts.for_model(model)
        rows |= {(type(model), label): {row for row, _ in layout.keys} for label, layout in known.items()}
        fitting = {label: layout for label, layout in known.items() if agrees(model, layout)}
        slots = rules.structure(model, model.image_shape).slots if fitting else {}
        for label, layout in fitting.items():
            places = [rules.target(layout, kind(label), path) for path in slots]
            assert len(set(places)) == len(slots), (name, label)
            assert not [place for place in places if re.search(r"[{}|\\]", place)], (name, label)
            for module in {"/".join(path[1:-1]) for path in slots}:
                first = next(pattern for pattern, _ in layout.keys if re.fullmatch(pattern, module))
                used[type(model), label].add(first)
    assert {case: unused for case, all_ in rows.items() if (unused := all_ - used[case])} == {}


def test_every_table_is_of_a_class_of_models():
    names = [*models.names(), *models.names("detection"), *models.names("segmentation")]
    classes = {type(models.create(name)).__name__ for name in names}
    assert layouts.tables().keys() <= classes
    assert all(layouts.tables().values())


def test_a_subclass_has_its_parents_layouts_and_a_stranger_none():
    class Mine(ResNet):
        pass

    class Stranger(linen.Module):
        pass

    assert layouts.for_model(Mine((1, 1, 1, 1))) == layouts.tables()["ResNet"]
    assert layouts.for_model(Stranger()) == {}


@pytest.mark.parametrize("tag", [tag for tag in weights.published() if not tag.endswith(".darknet")])
def test_a_published_file_has_rules_that_the_catalogs_model_agrees_with(tag):
    entry = weights.published()[tag]
    model = create(entry)
    by_keras = tag.endswith(".keras")
    known = [layout for label, layout in layouts.for_model(model).items() if label.startswith("keras") == by_keras]
    assert any(agrees(model, layout) for layout in known)


@pytest.mark.parametrize(
    ("name", "module", "place"),
    [  # as other programs read them from the files on keras.io
        ("xception", "stem2/norm", "batchnormalization_2"),
        ("xception", "entry1/shortcut/conv", "convolution2d_3"),
        ("xception", "entry1/shortcut/norm", "batchnormalization_3"),
        ("xception", "entry3/sepconv2/conv/depthwise", "separableconvolution2d_6:depthwise_kernel"),
        ("xception", "middle8/sepconv3/conv/pointwise", "separableconvolution2d_30:pointwise_kernel"),
        ("xception", "exit1/shortcut/conv", "convolution2d_6"),
        ("xception", "exit1/shortcut/norm", "batchnormalization_36"),
        ("xception", "exit1/sepconv1/norm", "batchnormalization_37"),
        ("xception", "exit2_sepconv2/norm", "batchnormalization_40"),
        ("xception", "head/dense", "dense_2"),
        ("resnet50_v1", "stage1/block1/shortcut/conv", "conv2_block1_0_conv"),
        ("resnet50_v1", "head/dense", "probs"),
        ("inception_v3", "conv1/conv", "conv2d_1"),
        ("inception_v3", "mixed7c/project/norm", "batch_normalization_94"),
        ("inception_resnet_v2", "block8_last/mixed/branch2/conv3/conv", "conv2d_203"),
        ("mobilenet_v2", "block1/depthwise/conv", "mobl0_conv_0_depthwise"),
        ("mobilenet_v2", "block2/expand/norm", "bn1_conv_1_bn_expand"),
        ("mobilenet_v2", "head/dense", "Logits"),
    ],
)
def test_names_of_files_older_than_keras_names_of_today(name, module, place):
    assert rules.translated(layouts.for_model(models.create(name))["keras.io"], module) == place


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("resnet50", "conv1_conv/kernel", "want a ResNet with stride_first=True, this one has stride_first=False"),
        ("resnet50_v1", "conv1.weight", "want a ResNet with stride_first=False"),
        ("seresnet50", "conv1_conv/kernel", "want a ResNet with .*reduction=None"),
        ("se_googlenet", "conv1.conv.weight", "want a GoogLeNet with reduction=None"),
        ("mobilenet_v1", "conv_stem.weight", "want a MobileNet with padding=1"),
        ("mobilenet_v2", "features.0.0.weight", "want a MobileNetV2 with padding=1"),
        ("xception", "conv1.weight", "want a Xception with padding=1"),
        ("inception_v3", "conv2d/kernel", "want a InceptionV3 with aux=False, count_include_pad=False"),
        (
            "vgg16",
            "features.23.weight features.30.weight features.32.weight",
            "want a VGG with convs=\\(2, 2, 4, 4, 4\\)",
        ),
    ],
)
def test_a_file_for_another_variant_names_the_fields(tmp_path, name, keys, message):
    np.savez(tmp_path / "w.npz", **dict.fromkeys(keys.split(), np.zeros(1, np.float32)))
    with pytest.raises(UserError, match=message):
        weights.load(tmp_path / "w.npz", models.create(name))


def drawn(name, **fields):
    """Random arrays by today's names in Keras."""
    model, rng = models.create(name, **fields), np.random.default_rng(0)
    slots = rules.structure(model, model.image_shape).slots
    layout = layouts.for_model(model)["keras"]
    return {
        rules.target(layout, "keras", path): rng.uniform(0.5, 1, slot.shape).astype(np.float32)
        for path, slot in slots.items()
    }


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNet of a quarter of the width, by Keras' names, its head a convolution, a variance far below epsilon."""
    arrays = drawn("mobilenet_v1", width=0.25)
    arrays["conv_preds/kernel"] = arrays["conv_preds/kernel"][None, None]
    arrays["conv_dw_1_bn/moving_variance"][:] = 1e-4
    path = tmp_path_factory.mktemp("mobilenet") / "peer.npz"
    np.savez(path, **arrays)
    return path


def equal(a, b):
    return all(np.array_equal(a[path], b[path]) for path in a.keys() & b.keys())


def leaves(variables):
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(variables)}


def test_a_new_head_and_none(mobilenet):
    whole = leaves(weights.load(mobilenet, models.create("mobilenet_v1", width=0.25)))
    with pytest.raises(UserError, match='1000 classes: give num_classes=1000; or head="new" starts a head of 5'):
        weights.load(mobilenet, models.create("mobilenet_v1", width=0.25, num_classes=5))
    new = leaves(weights.load(mobilenet, models.create("mobilenet_v1", width=0.25, num_classes=5), head="new"))
    none = leaves(weights.load(mobilenet, models.create("mobilenet_v1", width=0.25, num_classes=None)))
    head = {name for name in whole if "'head'" in name}
    assert len(head) == 2
    assert new.keys() == whole.keys()
    assert none.keys() == whole.keys() - head
    assert equal(none, whole)
    assert equal(none, new)
    assert {new[name].shape for name in head} == {(256, 5), (5,)}


def test_another_width_does_not_fit(mobilenet):
    with pytest.raises(UserError, match=r"norm/mean: \[16\], in the file conv_dw_1_bn/moving_mean \[8\]"):
        weights.load(mobilenet, models.create("mobilenet_v1", width=0.5))


@pytest.mark.parametrize("epsilon", [1e-5, 2e-3])
def test_another_epsilon_goes_into_the_variance(mobilenet, epsilon):
    """The new variance is below zero where that of the file was small, but by less than the model's epsilon."""
    path = ("batch_stats", "block1", "depthwise", "norm", "var")
    plain, folded = (
        weights.load(mobilenet, models.create("mobilenet_v1", width=0.25, epsilon=e)) for e in (1e-3, epsilon)
    )
    theirs, ours = (functools.reduce(lambda tree, key: tree[key], path, x) for x in (plain, folded))
    np.testing.assert_allclose(ours + epsilon, theirs + 1e-3, rtol=1e-6)


def test_a_file_with_the_names_of_keras_io(tmp_path):
    arrays = drawn("mobilenet_v2", width=0.35)

    def older(key):
        key = key.replace("expanded_conv", "block_0").replace("predictions", "Logits")
        key = re.sub(r"^block_(\d+)_(\w+)_BN/", r"bn\1_conv_\1_bn_\2/", key)
        return re.sub(r"^block_(\d+)_(\w+)/", r"mobl\1_conv_\1_\2/", key)

    loaded = []
    for name, rename in (
        ("today", str),
        ("older", older),
        ("others", lambda key: key.replace("predictions", "Logits")),
    ):
        np.savez(tmp_path / f"{name}.npz", **{rename(key): x for key, x in arrays.items()})
        loaded.append(leaves(weights.load(tmp_path / f"{name}.npz", models.create("mobilenet_v2", width=0.35))))
    assert equal(loaded[0], loaded[1])
    assert equal(loaded[0], loaded[2])


def test_a_file_of_another_family_is_one_error_even_where_the_publisher_has_no_such_part(tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv_dw_1/kernel": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"keras.* have no stage1/block1/se/expand of this ResNet"):
        weights.load(tmp_path / "w.npz", models.create("seresnet50"))
