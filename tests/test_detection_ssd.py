"""SSD: parameters, shapes and places of its outputs, any backbone; tests/parity compares it with torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models.detection import ssd
from cnnjax.ops import anchors, boxes
from cnnjax.types import UserError

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(0)}


def traced(model, shape=None, **more):
    images = jax.ShapeDtypeStruct((2, *(shape or model.image_shape)), np.float32)
    variables = jax.eval_shape(model.init, KEYS, images)
    return variables, jax.eval_shape(functools.partial(model.apply, **more), variables, images)


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables))


def test_ssd300_on_vgg16():
    model = models.create("ssd300_vgg16")
    assert "ssd300_vgg16" in models.names("detection")
    assert (model.head, model.image_shape, model.num_classes) == ("ssd", (300, 300, 3), 90)
    variables, (outputs, endpoints) = traced(model)
    assert count(variables) == 35_641_826
    shapes = {key: (x.shape, x.dtype) for key, x in outputs.items()}
    assert shapes == {"classes": ((2, 8732, 91), jnp.float32), "boxes": ((2, 8732, 4), jnp.float32)}
    assert model.default_boxes().shape == (8732, 4)
    sides = {key: endpoints[key].shape[1] for key in ("norm4_3", "conv7", "extra1", "extra2", "extra3", "extra4")}
    assert sides == {"norm4_3": 38, "conv7": 19, "extra1": 10, "extra2": 5, "extra3": 3, "extra4": 1}


def test_other_classes_sizes_types_and_no_head():
    variables, (outputs, _) = traced(models.create("ssd300_vgg16", num_classes=20, dtype=jnp.bfloat16))
    assert outputs["classes"].shape == (2, 8732, 21)
    assert {x.dtype for x in (*jax.tree.leaves(variables), *outputs.values())} == {jnp.dtype("float32")}
    model = models.create("ssd300_vgg16")
    _, (outputs, _) = traced(model, (512, 400, 3))
    assert outputs["boxes"].shape[1] == len(model.default_boxes((512, 400)))
    without, (outputs, endpoints) = traced(models.create("ssd300_vgg16", num_classes=None))
    assert outputs is None
    assert endpoints["extra4"].shape == (2, 1, 1, 256)
    assert "head" not in without["params"]


def test_vgg_fills_the_base():
    """The blocks are VGG's, by name and shape; conv6, conv7 and the scale of the norm are SSD's own."""
    detector, _ = traced(ssd.ReducedVGG())
    classifier, _ = traced(models.create("vgg16", num_classes=None))
    own = detector["params"].keys() - classifier["params"].keys()
    assert own == {"conv6", "conv7", "norm"}
    for name, block in classifier["params"].items():
        assert jax.tree.map(jnp.shape, block) == jax.tree.map(jnp.shape, detector["params"][name])


def test_a_head_on_any_base():
    base = models.create("resnet18", num_classes=None)
    model = models.create("ssd", base=("resnet18", {}), num_classes=3)
    variables, (outputs, endpoints) = traced(model, train=False)
    assert [endpoints[f"extra{i}"].shape[1] for i in (1, 2, 3, 4)] == [5, 3, 2, 1]
    # Maps of 20, 10, 5, 3, 2, 1 pixels.
    assert len(model.default_boxes()) == 4 * 400 + 6 * (100 + 25 + 9) + 4 * (4 + 1) == outputs["boxes"].shape[1]
    assert outputs["classes"].shape[2] == 4
    alone, _ = traced(base)
    assert jax.tree.map(jnp.shape, variables["params"]["base"]) == jax.tree.map(jnp.shape, alone["params"])


def test_the_base_without_one_named_is_mobilenet_v2():
    model = models.create("ssd")
    assert type(model.base).__name__ == "MobileNetV2"
    assert len(model.default_boxes()) == 2424


def test_a_stride_that_the_base_lacks():
    model = models.create("ssd", base=("resnet18", {}), strides=[64])
    with pytest.raises(UserError, match="ResNet has no feature map of stride 64"):
        model.default_boxes()


def test_images_that_are_too_small():
    with pytest.raises(
        ValueError, match=r"larger images: extra4, .*a map of \(2, 2\) pixels in images of \(224, 224\)"
    ):
        models.create("ssd300_vgg16").default_boxes((224, 224))


def test_a_batch_of_unknown_size_can_be_traced():
    """An export with a free batch size needs this."""
    model = models.create("ssd", base=("resnet18", {}))
    variables, _ = traced(model)
    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *model.image_shape), np.float32)

    def detect(variables, images):
        return model.decode(model.apply(variables, images, train=False)[0], model.image_shape)

    found, scores = jax.eval_shape(detect, variables, images)
    assert (found.shape, scores.shape) == ((count, 2424, 4), (count, 2424, 20))


def test_another_number_of_default_boxes_than_of_maps():
    with pytest.raises(ValueError, match=r"each of 5 feature maps.*got 7 scales"):
        models.create("ssd", base=("resnet18", {}), strides=[32], default=anchors.SSD300).default_boxes()


def test_a_heads_outputs_are_in_the_order_of_the_default_boxes():
    """Change of one cell of a map changes the boxes whose centers are at most a cell away, and no others."""
    shapes, spec = [(4, 6), (2, 3)], anchors.even_default_boxes(2)
    head = ssd.Head(spec.per_cell, 5, None)
    maps = [np.zeros((1, *shape, 2), np.float32) for shape in shapes]
    variables = jax.jit(head.init)(KEYS, maps)
    apply = jax.jit(head.apply)
    before = apply(variables, maps)
    changed = maps[0].copy()  # JAX may still read the other
    changed[0, 1, 4] = 1
    after = apply(variables, [changed, maps[1]])
    centers = boxes.xyxy_to_cxcywh(anchors.default_boxes(spec, (40, 60), shapes))[:, :2]
    near = (np.abs(centers - np.array([45, 15])) < 15).all(1) & (np.arange(len(centers)) < 4 * 6 * 4)
    assert near.sum() == 9 * 4
    for kind, values in (("classes", 5), ("boxes", 4)):
        assert after[kind].shape == (1, len(centers), values)
        np.testing.assert_array_equal(np.any(after[kind] != before[kind], -1)[0], near)


def test_decoding():
    base = models.create("digits_cnn", num_classes=None)
    model = ssd.SSD(base, 3, strides=(4,), extras=((8, 2),), image_shape=(16, 24, 1))
    default = model.default_boxes()
    codes, logits = np.zeros((1, len(default), 4), np.float32), np.full((1, len(default), 4), -20, np.float32)
    codes[0, 0] = [10, 0, 0, 5 * np.log(2)]  # a width to the right, twice as high
    logits[0, :, 0] = 0
    logits[0, 1] = [0, np.log(2), 0, 0]
    found, scores = model.decode({"classes": logits, "boxes": codes}, model.image_shape)
    x, y, width, height = boxes.xyxy_to_cxcywh(default)[0]
    want = boxes.clip(boxes.cxcywh_to_xyxy(np.array([x + width, y, width, 2 * height])), 16, 24)
    np.testing.assert_allclose(found[0, 0], want, atol=1e-4)
    np.testing.assert_allclose(found[0, 1:], boxes.clip(default, 16, 24)[1:], atol=1e-4)
    assert scores.shape == (1, len(default), 3)
    np.testing.assert_allclose(scores[0, :2], [[0, 0, 0], [0.4, 0.2, 0.2]], atol=1e-6)


def test_l2_norm_by_hand_and_where_nothing_is_active():
    layer = ssd.L2Norm()
    x = np.array([[3, 4], [0, 0]], np.float32)
    variables = {"params": {"scale": np.array([20, 10], np.float32)}}
    np.testing.assert_allclose(layer.apply(variables, x), [[12, 8], [0, 0]], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: layer.apply(variables, x).sum()))(x)
    assert np.isfinite(gradient).all()
    assert jax.eval_shape(layer.apply, variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
