"""weights.load and save: every array once, exact folds, heads, errors with both sides."""

import functools
import json
import subprocess
import sys
import zlib
from typing import ClassVar

import chex
import classify
import flax
import flax.linen as linen
import jax
import numpy as np
import orbax.checkpoint
import pytest
from safetensors.numpy import save_file

from cnnjax import models, nn, settings, weights
from cnnjax.models import resnet
from cnnjax.types import UserError
from cnnjax.weights import layouts, rules
from cnnjax.weights.layouts import Layout

LAYOUTS = {
    "keras": Layout(((r"stem/conv", "c"), (r"stem/norm", "n"), (r"fc(\d)", "d{1-1}"), (r"head/dense", "out"))),
    "torch": Layout(
        ((r"stem/conv", "c"), (r"stem/norm", "n"), (r"fc(\d)", "d.{1+1}"), (r"head/dense", "out"), (r"aux", "aux")),
        epsilon=1e-2,
        fields={"padding": 1},
        absent={"scale": 1.0},
        flat={"fc1": (5, 6, 4)},
        unused=r"aux\.",
    ),
}


@pytest.fixture(autouse=True)
def layouts_of_net(monkeypatch):
    """Layouts of ``Net``, as if a file of ``weights/layouts`` had them."""
    monkeypatch.setitem(layouts.tables(), "Net", LAYOUTS)


class Net(linen.Module):
    """Network of convolution, BatchNorm, dense layer on the flattened feature map, and head."""

    image_shape: ClassVar = (6, 4, 3)
    num_classes: int | None = 7
    padding: int = 1
    epsilon: float = 1e-3

    @linen.compact
    def __call__(self, x, *, train=False):
        x = nn.ConvNorm(5, 3, padding=self.padding, epsilon=self.epsilon, name="stem")(x, train)
        x = linen.Dense(8, name="fc1")(x.reshape(len(x), -1))
        return (None if self.num_classes is None else nn.Head(self.num_classes, name="head")(x, train)), {"fc1": x}


def torch_arrays(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "c.weight": draw(5, 3, 3, 3),
        "c.bias": draw(5),
        "n.weight": draw(5),
        "n.bias": draw(5),
        "n.running_mean": draw(5),
        "n.running_var": rng.uniform(0.5, 2, 5).astype(np.float32),
        "d.2.weight": draw(8, 5 * 6 * 4),
        "d.2.bias": draw(8),
        "out.weight": draw(7, 8),
        "out.bias": draw(7),
    }


def expected_logits(a, images):
    """Logits of the torch network with these arrays, computed by its definition in float64."""
    a = {name: x.astype(np.float64) for name, x in a.items()}
    x = np.pad(images.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, a["c.weight"]) + a["c.bias"][:, None, None]
    scale = a["n.weight"] / np.sqrt(a["n.running_var"] + 1e-2)
    y = (y - a["n.running_mean"][:, None, None]) * scale[:, None, None] + a["n.bias"][:, None, None]
    y = np.maximum(y, 0).reshape(len(y), -1) @ a["d.2.weight"].T + a["d.2.bias"]
    return y @ a["out.weight"].T + a["out.bias"]


@pytest.fixture
def write(tmp_path):
    def write(arrays, name="w.safetensors"):
        save_file(arrays, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype(np.float32)


def test_bias_before_norm_epsilon_order_and_flattening_are_converted_exactly(write, images):
    arrays = torch_arrays()
    variables = weights.load(write(arrays), Net())
    logits, _ = Net().apply(variables, images)
    np.testing.assert_allclose(logits, expected_logits(arrays, images), rtol=1e-4, atol=1e-4)
    assert all(isinstance(x, jax.Array) and x.dtype == np.float32 for x in jax.tree.leaves(variables))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(write, dtype):
    arrays = {name: x.astype(dtype) for name, x in torch_arrays().items()}
    variables = weights.load(write(arrays), Net())
    assert np.array_equal(variables["params"]["head"]["dense"]["kernel"], arrays["out.weight"].T.astype(np.float32))


def test_what_the_layout_leaves_out_is_filled_and_auxiliary_heads_are_dropped(write):
    arrays = torch_arrays()
    del arrays["n.weight"]
    arrays["aux.weight"] = np.zeros(3, np.float32)
    variables = weights.load(write(arrays), Net())
    assert variables["params"]["stem"]["norm"]["scale"].tolist() == [1] * 5


def test_errors_list_both_sides(write):
    arrays = torch_arrays()
    arrays["surplus.weight"] = np.zeros((2, 3), np.float32)
    arrays["out.weight"] = arrays["out.weight"][:6]
    arrays["d.2.bias"] = arrays["d.2.bias"].astype(np.int32)
    del arrays["n.running_mean"]
    path = write(arrays)
    with pytest.raises(UserError) as caught:
        weights.load(path, Net())
    text = str(caught.value)
    assert text.startswith(f"{path}: this ")
    for line in (
        "in the model, not in the file (1):\n    batch_stats/stem/norm/mean [5] (their n.running_mean)",
        "in the file, not in the model (1):\n    surplus.weight [2, 3]",
        "params/head/dense/kernel: [8, 7], in the file out.weight [6, 8]",
        "params/fc1/bias: float32, in the file d.2.bias int32",
    ):
        assert line in text
    assert "head=" not in text


def test_errors_have_12_lines_at_most(write):
    arrays = torch_arrays() | {f"more.{i:02}": np.zeros(1, np.float32) for i in range(23)}
    with pytest.raises(UserError, match=r"more\.08 \[1\]\n    and 14 more$") as caught:
        weights.load(write(arrays), Net())
    assert str(caught.value).count("\n") == 11
    for key in ("n.running_mean", "n.running_var", "d.2.bias"):
        del arrays[key]
    for key in ("n.weight", "n.bias", "out.bias"):
        arrays[key] = arrays[key][1:]
    with pytest.raises(UserError, match=r"and 22 more\n") as caught:
        weights.load(write(arrays), Net())
    assert str(caught.value).count("\n") <= 11


def test_a_head_of_another_size_is_replaced_only_on_request(write):
    arrays = torch_arrays()
    path, model = write(arrays), Net(num_classes=3)
    with pytest.raises(UserError, match='its head has 7 classes: give num_classes=7; or head="new" starts a head of 3'):
        weights.load(path, model)
    loads = [weights.load(path, model, head="new", key=jax.random.key(i)) for i in (0, 0, 1)]
    kernels = [v["params"]["head"]["dense"]["kernel"] for v in loads]
    assert kernels[0].shape == (8, 3)
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert np.array_equal(loads[0]["params"]["fc1"]["bias"], arrays["d.2.bias"])
    for name in ("out.weight", "out.bias"):  # nor need the file have one
        del arrays[name]
    assert jax.tree.structure(weights.load(write(arrays), model, head="new")) == jax.tree.structure(loads[0])
    with pytest.raises(UserError, match='head is "strict" or "new"'):
        weights.load(path, model, head="old")


def test_a_model_without_a_head_leaves_the_file_s(write, images):
    arrays = torch_arrays()
    variables = weights.load(write(arrays), Net(num_classes=None))
    _, endpoints = Net(num_classes=None).apply(variables, images)
    _, whole = Net().apply(weights.load(write(arrays), Net()), images)
    assert np.array_equal(endpoints["fc1"], whole["fc1"])


def test_fields_that_would_compute_something_else_are_refused(write):
    with pytest.raises(UserError, match=r"torch's weights want a Net with padding=1, this one has padding=0"):
        weights.load(write(torch_arrays()), Net(padding=0))


def test_reversed_channels_take_reversed_images(write, images):
    path = write(torch_arrays())
    plain, swapped = (weights.load(path, Net(), reverse_channels=flag) for flag in (False, True))
    a, b = Net().apply(plain, images)[0], Net().apply(swapped, images[..., ::-1])[0]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not np.allclose(a, Net().apply(swapped, images)[0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d.2.bias", np.nan, "d.2.bias holds NaN or infinity"),
        ("c.weight", np.inf, "c.weight holds NaN or infinity"),
        ("n.running_var", -1.0, "n.running_var is a variance below zero"),
    ],
)
def test_values_that_no_network_has_are_refused(write, name, value, message):
    arrays = torch_arrays()
    arrays[name].flat[2] = value
    with pytest.raises(UserError, match=message):
        weights.load(write(arrays), Net())


def test_a_variance_that_a_smaller_epsilon_moved_below_zero_is_saved_and_loaded(write, tmp_path, images):
    arrays, model = torch_arrays(), Net(epsilon=0.5)
    variables = weights.load(write(arrays), model)
    assert variables["batch_stats"]["stem"]["norm"]["var"].min() < 0.1
    arrays["n.running_var"][:] = 1e-4
    variables = weights.load(write(arrays), model)
    assert variables["batch_stats"]["stem"]["norm"]["var"].max() < 0
    again = weights.load(weights.save(tmp_path / "own", variables, model), model)
    np.testing.assert_allclose(model.apply(again, images)[0], expected_logits(arrays, images), rtol=1e-3, atol=1e-3)
    variables["batch_stats"]["stem"]["norm"]["var"] -= 1
    with pytest.raises(UserError, match="variance below zero"):
        weights.load(weights.save(tmp_path / "own", variables, model), model)


def test_what_is_neither_file_nor_tag_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"resnet50.kera is neither a file nor a tag.*did you mean resnet50.keras"):
        weights.load("resnet50.kera", models.create("resnet50_v1"))
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary")
    with pytest.raises(UserError, match=r"notes.txt begins with b'Dear dia', which no file of weights does"):
        weights.load(path, Net())
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="begins with b''"):
        weights.load(tmp_path / "empty", Net())


def test_a_model_without_rules_for_the_file_says_which_it_has(write):
    with pytest.raises(UserError, match=r"with torch's names, which LeNet5Modern has no rules for .*none"):
        weights.load(write(torch_arrays()), models.create("lenet5_modern"))


def test_every_model_is_saved_and_loaded_bit_for_bit(tmp_path):
    """Models with and without statistics, auxiliary heads and dense layers whose shapes depend on the image size."""
    small = {"image_size": 64}
    for name, size in (
        ("lenet5", {}),
        ("lenet5_modern", {}),
        ("digits_cnn", {}),
        ("resnet18", small),
        ("googlenet", small),
    ):
        model = models.create(name)
        shape = model.image_shape if not size else (64, 64, 3)
        tree = jax.eval_shape(
            model.init, dict.fromkeys(("params", "dropout"), jax.random.key(0)), np.zeros((1, *shape), np.float32)
        )
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(x.dtype), tree)  # noqa: B023
        path = weights.save(tmp_path / f"{name}.bin", variables, model)
        loaded = weights.load(path, model, **size)
        chex.assert_trees_all_equal(loaded, variables, strict=True)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".bin"]


def test_weights_of_another_variant_do_not_load_silently(tmp_path):
    """The shapes fit, but the model would compute other results."""
    variables = jax.jit(Net().init)(jax.random.key(0), np.zeros((1, 6, 4, 3)))
    path = weights.save(tmp_path / "w", variables, Net())
    for other, says in ((Net(padding=0), "padding=1, this one has padding=0"), (Net(epsilon=0.1), "epsilon=0.001")):
        with pytest.raises(UserError, match=f"these are weights of a Net with {says}"):
            weights.load(path, other)
    assert jax.tree.structure(weights.load(path, Net(num_classes=2), head="new")) == jax.tree.structure(variables)


def test_a_structure_that_jax_has_traced_before_has_its_epsilons(write):
    model = Net(num_classes=7, epsilon=3e-3)
    init = jax.jit(model.init)
    init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, np.zeros((1, 6, 4, 3), np.float32))
    assert weights.load(write(torch_arrays()), model)
    assert rules.structure(model, (6, 4, 3)).epsilons == {("stem", "norm"): 3e-3}


def test_images_of_another_size_or_number_of_channels(tmp_path):
    model = Net()
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 10, 1)))
    path = weights.save(tmp_path / "w", variables, model)
    loaded = weights.load(path, model, image_size=(8, 10, 1))
    chex.assert_trees_all_equal(loaded, variables)
    with pytest.raises(UserError, match=r"depend on the size of images: give its image_size="):
        weights.load(weights.save(path, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 10, 3))), model), model)
    for size in (0, "6", (1, 2, 3, 4), 2.5):
        with pytest.raises(UserError, match="image_size is a number of pixels"):
            weights.load(path, model, image_size=size)


def test_a_tag_that_is_also_a_file_is_ambiguous(write, tmp_path, monkeypatch):
    write(torch_arrays(), "resnet50.keras")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a published tag and a file here: write \./resnet50.keras"):
        weights.load("resnet50.keras", Net())
    assert weights.load("./resnet50.keras", Net())


@pytest.mark.exhaustive
def test_the_weights_of_a_run_load(tmp_path, monkeypatch):
    """A real run with optimizer and moving average: its weights fit the model that it trained and no other."""
    monkeypatch.setattr(resnet, "_FEATURES", (8, 16, 24, 32))  # takes a fraction of the time
    values = {"smoke": True, "run_dir": tmp_path / "run", "model": "resnet18", "image_size": 32}
    config = settings.change(classify.recipe("digits"), **values)
    classify.main(config)
    model = models.create("resnet18", num_classes=10)
    variables = weights.load(tmp_path / "run", model, image_size=(32, 32, 1))
    restored = orbax.checkpoint.PyTreeCheckpointer().restore(
        max((tmp_path / "run" / "checkpoints").glob("[0-9]*")) / "state"
    )
    average = restored["ema"]["params"]["head"]["dense"]["kernel"]
    assert np.array_equal(variables["params"]["head"]["dense"]["kernel"], average)
    with pytest.raises(UserError, match=r"weights of a ResNet with blocks=.*bottleneck=False"):
        weights.load(tmp_path / "run", models.create("resnet50", num_classes=10), image_size=(32, 32, 1))


def test_save_refuses_what_is_not_the_model_s(tmp_path):
    variables = jax.jit(Net().init)(jax.random.key(0), np.zeros((1, 6, 4, 3)))
    path = tmp_path / "w"
    with pytest.raises(UserError, match="without \\['batch_stats/stem/norm/mean'"):
        weights.save(path, {"params": variables["params"]}, Net())
    with pytest.raises(UserError, match="but with \\['params/head/dense/bias'"):
        weights.save(path, variables, Net(num_classes=None))
    for leaf in (np.full(7, np.nan, np.float32), np.zeros(7, np.int32), np.zeros(6, np.float32)):
        wrong = {
            **variables,
            "params": {**variables["params"], "head": {"dense": {"kernel": np.ones((8, 7), np.float32), "bias": leaf}}},
        }
        with pytest.raises(UserError, match="params/head/dense/bias"):
            weights.save(path, wrong, Net())
    with pytest.raises(UserError, match="layout"):
        weights.save(path, variables, Net(), layout="onnx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*choose another path"):
        weights.save(tmp_path / "file" / "w", variables, Net())
    assert not path.exists()


SAVES = """
import sys
import numpy as np
from cnnjax import models, weights
from cnnjax.weights import rules
model = models.create("lenet5_modern")
tree = {}
for where, slot in sorted(rules.structure(model, model.image_shape).slots.items(), reverse=bool(int(sys.argv[2]))):
    inner = tree
    for name in where[:-1]:
        inner = inner.setdefault(name, {})
    inner[where[-1]] = np.full(slot.shape, len(where[-2]), slot.dtype)
weights.save(sys.argv[1], tree, model)
"""


def test_the_same_values_are_saved_as_the_same_bytes(tmp_path):
    """Two processes save them, at different times, one with the variables in another order."""
    for name, reverse in (("a", "0"), ("b", "1")):
        subprocess.run([sys.executable, "-c", SAVES, str(tmp_path / name), reverse], check=True)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    assert end % 8 == 0
    assert list(header) == ["__metadata__", *sorted(header.keys() - {"__metadata__"})]
    assert list(header["__metadata__"]) == ["format", "model", "fields", "crc32"]
    assert header["__metadata__"]["crc32"] == f"{zlib.crc32(content[end:]):08x}"


def test_saved_weights_are_read_by_safetensors_itself_and_a_flip_is_noticed(tmp_path):
    from safetensors.numpy import load_file

    variables = jax.jit(Net().init)(jax.random.key(0), np.zeros((1, 6, 4, 3)))
    path = weights.save(tmp_path / "w", variables, Net())
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    assert {k: v.tolist() for k, v in load_file(path).items()} == {k: v.tolist() for k, v in flat.items()}
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        weights.load(path, Net())


def test_flipped_bits_of_a_saved_file_are_noticed_or_change_nothing(tmp_path):
    """Bits of the header are flipped too, which no checksum covers."""
    variables = jax.jit(Net().init)(jax.random.key(0), np.zeros((1, 6, 4, 3)))
    path = weights.save(tmp_path / "w", variables, Net())
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    header = 8 + int.from_bytes(content[:8], "little")
    for at in (*range(header), *rng.integers(header, len(content), 200)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            loaded = weights.load(path, Net())
        except UserError:
            refused += 1
        else:
            chex.assert_trees_all_equal(loaded, variables, custom_message=f"byte {at}")
    assert refused > 0.9 * header


def test_the_result_survives_the_file(tmp_path, write):
    """No array is a view of the file, which may change or be removed."""
    path = write(torch_arrays())
    variables = weights.load(path, Net())
    before = jax.tree.map(np.array, variables)
    path.write_bytes(b"\0" * path.stat().st_size)
    chex.assert_trees_all_equal(before, variables)


def test_loaded_variables_train(write, images):
    variables = weights.load(write(torch_arrays()), Net())
    apply = functools.partial(Net().apply, train=True, mutable=["batch_stats"])
    grads = jax.grad(lambda p: apply({**variables, "params": p}, images)[0][0].sum())(variables["params"])
    chex.assert_tree_all_finite(grads)
