"""Classifiers made fully convolutional: the same logits at the original size, a map of them on larger images."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import FAST, drawn

from cnnjax import models, nn
from cnnjax.types import UserError

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
# Shapes of images, small ones: fewer weights to draw. Heights and widths differ, so that windows are no squares.
SHAPES = {
    "alexnet": (99, 67, 3),
    "alexnet_torchvision": (224, 224, 3),  # the only size at which its last feature map is not averaged to 6×6
    "alexnet_two_tower": (67, 99, 3),
    "digits_cnn": (8, 16, 1),
    "fashion_cnn": (24, 16, 1),
    "googlenet": (64, 96, 3),
    "inception_v3": (75, 107, 3),
    "lenet5": (28, 28, 1),
    "lenet5_modern": (32, 32, 1),
    "mobilenet_v1": (64, 32, 3),
    "resnet18": (64, 96, 3),
    "resnet50_v2": (32, 64, 3),
    "vgg16": (32, 64, 3),
    "zfnet": (95, 63, 3),
}
SLOW = (
    "alexnet_torchvision",
    "alexnet_two_tower",
    "darknet19",
    "darknet53",
    "fashion_cnn",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet50_v2",
    "vgg16",
)
SHAPES |= {name: (96, 128, 3) for name in models.names() if name not in SHAPES}
some_models = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in SLOW or SHAPES[name] == (96, 128, 3) else [])
        for name in models.names()
    ],
)


def images(shape, n=2):
    return np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)


def run(model, variables, x):
    """Logits and endpoints, on the host."""
    return jax.device_get(jax.jit(model.apply, compiler_options=FAST)(variables, x))


@some_models
def test_equal_logits_at_the_original_size(name):
    shape = SHAPES[name]
    model = models.create(name, num_classes=10)
    variables, x = drawn(model, shape), images(shape)
    before = jax.tree.map(np.copy, variables)
    made, converted = nn.to_fully_convolutional(model, variables, shape)
    (want, ends), (got, others) = run(model, variables, x), run(made, converted, x)
    assert got.shape == (2, 1, 1, 10)
    np.testing.assert_allclose(got[:, 0, 0], want, atol=1e-5 * np.abs(want).max())
    for key, value in ends.items():
        np.testing.assert_allclose(others[key].reshape(value.shape), value, atol=1e-5 * np.abs(value).max())
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    for path, kernel in jax.tree_util.tree_flatten_with_path(converted["params"])[0]:
        dense = path[-1].key == "kernel" and kernel.ndim == 2
        assert not dense or path[-2].key in ("reduce", "expand") or path[0].key.startswith("aux")


def sizes(name, side):
    """Heights and widths of the last feature map and of the map of logits, for images of this side, not computed."""
    model = models.create(name)
    made = []

    def convert(variables):
        model_, result = nn.to_fully_convolutional(model, variables)
        made.append(model_)
        return result

    original = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    variables = jax.eval_shape(convert, jax.eval_shape(model.init, KEYS, original))
    x = jax.ShapeDtypeStruct((1, side, side, model.image_shape[2]), jnp.float32)
    logits, endpoints = jax.eval_shape(made[0].apply, variables, x)
    return endpoints[list(model.strides)[-1]].shape[1:3], logits.shape


@pytest.mark.parametrize(
    ("name", "side", "last", "grid"),
    [
        ("vgg16", 224, 7, 1),
        ("vgg16", 448, 14, 8),  # the chapter: 14 − 7 + 1 = 8
        ("vgg19", 448, 14, 8),
        ("alexnet", 227, 6, 1),
        ("alexnet", 448, 12, 7),  # its first convolution pads nothing: the eighth window ends at 227 + 7 · 32 pixels
        ("alexnet", 451, 13, 8),
        ("alexnet_two_tower", 451, 13, 8),
        ("alexnet_torchvision", 224, 6, 1),
        ("alexnet_torchvision", 448, 13, 8),
        ("zfnet", 448, 13, 8),
        ("resnet18", 448, 14, 8),
        ("mobilenet_v2", 448, 14, 8),
        ("xception", 598, 19, 10),
        ("lenet5", 64, 13, 9),
    ],
)
def test_grids(name, side, last, grid):
    classes = models.create(name).num_classes
    assert sizes(name, side) == ((last, last), (1, grid, grid, classes))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_logits_of_a_cell_are_those_of_the_window_that_it_sees(name):
    """LeNet-5 pads nothing: each cell equals the network on 32×32 pixels, which move by its stride of 4."""
    model = models.create(name)
    made, variables = nn.to_fully_convolutional(model, weights := drawn(model, (32, 32, 1)), (32, 32, 1))
    (picture,) = images((45, 57, 1), 1)
    (logits,), _ = run(made, variables, picture[None])
    assert logits.shape == (4, 7, 10)
    windows = [picture[4 * i : 4 * i + 32, 4 * j : 4 * j + 32] for i in range(4) for j in range(7)]
    want, _ = run(model, weights, np.stack(windows))
    np.testing.assert_allclose(logits.reshape(28, 10), want, atol=1e-5 * np.abs(want).max())


def test_where_a_network_pads_only_the_border_knows_it():
    """Cells far from the border give the same logits in a part of the image, those beside it do not."""
    model = models.create("digits_cnn")
    made, variables = nn.to_fully_convolutional(model, drawn(model, (16, 16, 1)), (16, 16, 1))
    whole = images((96, 96, 1), 1)
    (logits,), _ = run(made, variables, whole)
    (part,), _ = run(made, variables, whole[:, 16:, 8:])
    assert logits.shape == (11, 11, 10)
    difference = np.abs(part - logits[2:, 1:]).max(-1) / np.abs(part).max()
    # Beyond its window a cell sees 3 + 2 · (1 + 1) + 4 · (1 + 1) = 15 pixels, two cells.
    assert difference[2:, 2:].max() <= 1e-5
    assert difference[0].min() > 1e-3
    assert difference[:, 0].min() > 1e-3


def test_it_trains_and_keeps_its_settings():
    model = models.create("fashion_cnn", num_classes=3, width=4, dropout=0.1)
    made, variables = nn.to_fully_convolutional(model, drawn(model, (16, 16, 1)), (16, 16, 1))
    assert (made.width, made.dropout, made.window) == (4, 0.1, (2, 2))
    shapes = jax.tree.map(np.shape, jax.eval_shape(made.init, KEYS, images((24, 24, 1))))
    assert shapes == jax.tree.map(np.shape, variables)
    assert nn.to_fully_convolutional(made, variables, (16, 16, 1))[0] == made

    def loss(variables):
        return made.apply(variables, images((24, 24, 1)), train=True, rngs=KEYS)[0].var()

    grads = jax.jit(jax.grad(loss), compiler_options=FAST)(variables)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_networks_without_a_head():
    model = models.create("vgg16", num_classes=None)
    variables = drawn(model, (32, 32, 3))
    made, same = nn.to_fully_convolutional(model, variables, (64, 64, 3))
    assert same["params"].keys() == variables["params"].keys()
    logits, endpoints = jax.eval_shape(made.apply, same, images((96, 64, 3)))
    assert logits is None
    assert endpoints["pooled"].shape == (2, 2, 1, 512)


class Plain(linen.Module):
    """Network without a window."""

    image_shape = (8, 8, 3)

    @linen.compact
    def __call__(self, x, *, train=False):
        return linen.Dense(4)(x.mean((1, 2))), {}


def test_what_cannot_be_converted_is_one_line():
    with pytest.raises(UserError, match="Plain cannot become fully convolutional: it has no field window"):
        nn.to_fully_convolutional(Plain(), {})
    model = models.create("digits_cnn")
    for shape in ((16, 16, 1), (36, 28, 1)):
        variables = jax.eval_shape(model.init, KEYS, images(shape))
        with pytest.raises(UserError, match="dense layers for images of another size than 28×28×1: give the image"):
            nn.to_fully_convolutional(model, variables)
    torchvision = models.create("alexnet_torchvision")
    variables = jax.eval_shape(torchvision.init, KEYS, images((448, 448, 3)))
    with pytest.raises(UserError, match="another size than 448×448×3"):
        nn.to_fully_convolutional(torchvision, variables, (448, 448, 3))
