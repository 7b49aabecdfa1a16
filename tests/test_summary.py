"""Costs: hand values, the chapter's numbers, published multiply-adds, and the table of layers."""

import csv
import functools
from typing import ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

from cnnjax import models, nn, summary
from cnnjax.ops import conv, pool
from cnnjax.ops.cpu import dispatch
from cnnjax.summary.memory import nbytes

KEY = jax.eval_shape(jax.random.key, 0)


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


class Net(linen.Module):
    """Network that computes ``layers(x, train)``."""

    layers: object
    dtype: object = None

    aux_weights: ClassVar = {}

    @linen.compact
    def __call__(self, x, *, train=False):
        y = self.layers(x, train)
        return y, {"last": y}


def floats(layers, *shape):
    """Floats of one image that training keeps beside the image, and the most that inference holds at one time."""
    net = Net(layers)
    cost = summary.cost(net, (1, *shape))
    stored = sum(nbytes(x) for x in jax.tree.leaves(jax.eval_shape(net.init, KEY, zeros(1, *shape))))
    kept = cost.train_bytes - stored - nbytes(zeros(*shape))
    assert kept == sum(layer.bytes for layer in cost.layers)
    return kept / 4, (cost.infer_bytes - stored) / 4


# Multiply-adds by hand.


@pytest.mark.parametrize(
    ("f", "args", "expected"),
    [
        pytest.param(jnp.dot, (zeros(5, 7), zeros(7, 3)), 5 * 7 * 3, id="product"),
        pytest.param(jax.vmap(jnp.dot), (zeros(2, 5, 7), zeros(2, 7, 3)), 2 * 5 * 7 * 3, id="batch of products"),
        pytest.param(
            functools.partial(conv.conv, groups=4),
            (zeros(2, 9, 9, 8), zeros(3, 3, 2, 12)),
            2 * 81 * 12 * 18,
            id="groups",
        ),
        pytest.param(
            functools.partial(conv.conv, strides=2, padding=((1, 0), (0, 0))),
            (zeros(1, 9, 8, 3), zeros(3, 2, 3, 5)),
            4 * 4 * 5 * 18,
            id="strides",
        ),
        pytest.param(conv.depthwise_conv, (zeros(1, 6, 6, 4), zeros(3, 3, 1, 8)), 36 * 8 * 9, id="depthwise"),
        pytest.param(
            functools.partial(conv.conv, dilation=2), (zeros(1, 6, 6, 4), zeros(3, 3, 4, 8)), 36 * 8 * 36, id="dilated"
        ),
        pytest.param(conv.conv, (zeros(1, 6, 4), zeros(3, 4, 8)), 6 * 8 * 12, id="1-D"),
        pytest.param(
            functools.partial(conv.conv_transpose, strides=2),
            (zeros(1, 5, 5, 4), zeros(3, 3, 6, 4)),
            25 * 4 * 6 * 9,
            id="transposed",
        ),
        pytest.param(lambda x: pool.max_pool(x, 2) + 1, (zeros(1, 4, 4, 1),), 0, id="none"),
    ],
)
def test_multiply_adds_by_hand(f, args, expected):
    assert summary.macs(f, *args) == expected
    assert summary.macs(jax.jit(jax.checkpoint(f)), *args) == expected
    with dispatch.plain_everywhere():
        half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), args)
        assert summary.macs(f, *half) == expected  # the convolution of jax.lax


def test_a_gradient_costs_twice_the_layer():
    x, kernel = zeros(2, 8, 8, 3), zeros(3, 3, 3, 4)
    once = summary.macs(conv.conv, x, kernel)
    gradients = jax.grad(lambda *args: jnp.sum(conv.conv(*args) ** 2), argnums=(0, 1))
    assert summary.macs(gradients, x, kernel) == 3 * once


def test_a_scan_counts_its_passes():
    def f(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), x), x, kernels)

    assert summary.macs(f, zeros(2, 5), zeros(7, 5, 5)) == 7 * 2 * 25
    # From the second pass on, a value that was carried in as a constant depends on the input.
    assert summary.macs(lambda kernels: f(jnp.ones((2, 5)), kernels), zeros(7, 5, 5)) == 7 * 2 * 25
    assert (
        summary.macs(lambda xs: jax.lax.scan(lambda c, x: ((c + x) @ jnp.eye(5), 0), jnp.zeros(5), xs), zeros(7, 5))
        == 175
    )


def test_what_is_not_needed_does_not_count():
    assert summary.macs(lambda x: (x @ x, x)[1] * 2, zeros(4, 4)) == 0


def test_an_unknown_number_of_passes_is_refused():
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match=r"passes is known, got while in the model"):
        summary.macs(f, zeros(3, 3))


# Memory by hand, in floats.


def test_a_chain_is_stored_once():
    def chain(x, train):
        return linen.swish(linen.relu(nn.Conv(5, 3, name="conv")(x)) * 2)

    assert floats(chain, 8, 8, 3) == (64 * 5, 64 * 8)


def test_batch_norm_keeps_its_input_in_training_only():
    kept, peak = floats(lambda x, train: nn.ConvNorm(5, 3, name="layer")(x, train), 8, 8, 3)
    assert peak == 64 * 8
    assert kept == 2 * 64 * 5 + 5  # and the mean, which is read twice


def test_a_sum_overwrites_one_of_its_terms():
    def residual(x, train):
        x = nn.Conv(4, 1, name="first")(x)
        return linen.relu(x + nn.Conv(4, 1, name="second")(x))

    # The first value is read twice. At the second convolution it and its result are in use.
    assert floats(residual, 8, 8, 1) == (2 * 64 * 4, 2 * 64 * 4)


def test_branches_end_in_their_concatenation():
    def branches(x, train):
        x = jnp.concatenate([linen.relu(nn.Conv(c, 1, name=f"conv{c}")(x)) for c in (2, 3)], axis=-1)
        return nn.max_pool(x, 2)

    # Training keeps the concatenation and the pooled feature map; inference has branches and concatenation at once.
    assert floats(branches, 8, 8, 1) == (64 * 5 + 16 * 5, 64 * 5 + 64 * 5)


def test_a_scan_keeps_every_pass_in_training():
    def passes(x, train):
        kernels = jnp.ones((7, 3, 3))
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    kept, peak = floats(passes, 4, 4, 3)
    assert kept == 7 * 48 + 48
    assert peak == 2 * 48


def test_bfloat16_halves_the_activations():
    """Averages and gates cast their inputs to float32, but only where they read them."""

    def layers(x, train):
        x = nn.ConvNorm(4, 3, dtype=x.dtype, name="conv")(x, train)
        x = nn.avg_pool(nn.SqueezeExcite(2, dtype=x.dtype, name="se")(x), 2)
        return nn.ConvNorm(4, 3, dtype=x.dtype, name="last")(x, train)

    wide, half = (
        sum(layer.bytes for layer in summary.cost(Net(layers, dtype), (2, 8, 8, 3)).layers)
        for dtype in (None, jnp.bfloat16)
    )
    assert half == pytest.approx(wide / 2, rel=0.02)  # statistics and sums are float32


def test_remat_keeps_what_leaves_a_stage_and_the_largest_stage():
    shape = (2, 64, 64, 3)
    plain, recomputed = (summary.cost(models.create("resnet18", remat=flag), shape) for flag in (False, True))
    assert (recomputed.params, recomputed.macs, recomputed.infer_bytes) == (plain.params, plain.macs, plain.infer_bytes)
    # The end of the last stage is stored with remat only: it is a chain that ends in the global average.
    stages = [sum(row.bytes for row in plain.layers if row.name.startswith(f"stage{i}")) for i in (1, 2, 3, 4)]
    ends = [4 * 2 * size**2 * features for size, features in ((16, 64), (8, 128), (4, 256), (2, 512))]
    expected = (
        plain.train_bytes - sum(stages) + max(a - b for a, b in zip(stages, [*ends[:3], 0], strict=True)) + sum(ends)
    )
    assert recomputed.train_bytes == expected


# The chapter.


def convolutions(features, size, strides, dtype=None):
    def layers(x, train):
        for i, count in enumerate(features):
            x = nn.Conv(count, size, strides=strides, dtype=dtype, name=f"conv{i + 1}")(x)
        return x

    return Net(layers, dtype)


def exercise_2(dtype=None):
    return convolutions((100, 200, 400), 3, 2, dtype)


def test_the_chapters_convolution():
    one, hundred = (summary.cost(convolutions((200,), 5, 1), (n, 150, 100, 3)) for n in (1, 100))
    assert one.params == 15_200
    assert one.macs == 225_000_000
    assert one.layers == (("conv1", "Conv", (1, 150, 100, 200), 15_200, 225_000_000, 12_000_000),)
    assert hundred.layers[0].bytes == 1_200_000_000


def test_the_chapters_exercise_2():
    one, fifty = (summary.cost(exercise_2(), (n, 200, 300, 3)) for n in (1, 50))
    assert one.params == 903_400
    assert [layer.params for layer in one.layers] == [2_800, 180_200, 720_400]
    assert [layer.shape for layer in one.layers] == [(1, 100, 150, 100), (1, 50, 75, 200), (1, 25, 38, 400)]
    # Parameters and the first two feature maps: the input, 0.72 MB, is no longer needed then.
    assert one.infer_bytes == 4 * 903_400 + 9_000_000 == 12_613_600
    assert sum(layer.bytes for layer in fifty.layers) == 526_000_000
    assert fifty.train_bytes == 526_000_000 + 36_000_000 + 4 * 903_400 == 565_613_600
    half = summary.cost(exercise_2(jnp.bfloat16), (50, 200, 300, 3))
    assert half.train_bytes == (526_000_000 + 36_000_000) / 2 + 4 * 903_400


# Published figures.


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("alexnet_torchvision", 0.714),
        ("vgg16", 15.47),
        ("vgg19", 19.63),
        ("googlenet_bn", 1.498),
        ("inception_v3", 5.713),
        ("resnet18", 1.814),
        ("resnet34", 3.664),
        ("resnet50", 4.089),
        pytest.param("resnet101", 7.801, marks=pytest.mark.exhaustive),
        pytest.param("resnet152", 11.514, marks=pytest.mark.exhaustive),
        ("mobilenet_v2", 0.301),
    ],
)
def test_multiply_adds_are_torchvisions(name, gmacs):
    model = models.create(name)
    cost = summary.cost(model, (1, *model.image_shape))
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=10.0 ** -(len(str(gmacs).partition(".")[2])) * 0.501)
    # The table is complete: nothing is lost between layers, and every parameter has its line.
    assert sum(layer.macs for layer in cost.layers) == cost.macs
    assert sum(layer.params for layer in cost.layers) == cost.params
    assert len({(layer.name, layer.kind) for layer in cost.layers if layer.params}) == sum(
        layer.params > 0 for layer in cost.layers
    )


def test_auxiliary_heads_cost_in_training_only():
    whole, bare = (summary.cost(models.create("googlenet_bn", num_classes=n), (1, 96, 96, 3)) for n in (1000, None))
    heads = [layer for layer in whole.layers if layer.name.startswith("aux")]
    assert {layer.macs for layer in heads} == {0}
    assert sum(layer.params for layer in heads) == 13_004_888 - 6_624_904
    assert sum(layer.bytes for layer in heads) > 0
    assert whole.macs - bare.macs == 1000 * 1024


def test_names_are_those_of_the_parameters():
    model = models.create("resnet18", remat=True)
    params = jax.eval_shape(model.init, KEY, zeros(1, 64, 64, 3))["params"]
    lines = {layer.name: layer for layer in summary.cost(model, (1, 64, 64, 3)).layers}
    assert lines["stage2/block1/shortcut/conv"].params == params["stage2"]["block1"]["shortcut"]["conv"]["kernel"].size
    assert lines["stage2/block1/shortcut/conv"].shape == (1, 8, 8, 128)
    assert (lines["head/dense"].kind, lines["head/dense"].shape) == ("Dense", (1, 1000))
    assert lines["stem/norm"].kind == "BatchNorm"


# Tables.


def test_to_csv(tmp_path):
    cost = summary.cost(models.create("fashion_cnn"), (1, 28, 28, 1))
    path = tmp_path / "layers.csv"
    summary.to_csv(cost, path)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {
        "name": "conv1",
        "kind": "Conv",
        "shape": "1×28×28×64",
        "params": "3200",
        "macs": "2458624",
        "bytes": "200704",
    }
    assert lines[1]["kind"] == "max_pool"
    assert (lines[-1]["name"], lines[-1]["params"], lines[-1]["macs"]) == ("total", "1413834", str(cost.macs))
    assert lines == [{key: str(value) for key, value in row.items()} for row in summary.rows(cost)]
    assert list(tmp_path.iterdir()) == [path]
