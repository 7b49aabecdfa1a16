"""Darknet's files: every layer by hand, weights in their order, and one clear line for each kind of damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from darknet_files import CFG, conv, net, section, write_weights

from cnnjax import models, weights
from cnnjax.models.detection import darknet
from cnnjax.ops import cells
from cnnjax.tasks import classify, detect
from cnnjax.types import UserError

SMALL = net(8) + conv(4) + section("maxpool", size=2, stride=2) + conv(18, 1, norm=0, activation="linear")
YOLO = section("yolo", mask="0,2", anchors="1,2, 3,4, 5,6", classes=4, num=3)
SIZES = {"yolov2_voc": 50_655_389, "yolov3": 61_949_149, "yolov3_tiny": 8_852_366}


def written(tmp_path, text):
    cfg = tmp_path / "net.cfg"
    cfg.write_text(text)
    return cfg


def outputs(tmp_path, text, images, variables=None):
    """Outputs of every layer; without ``variables`` of a network that has none."""
    model = darknet.read(written(tmp_path, text))
    _, endpoints = model.apply(variables or {}, images)
    return list(endpoints.values())


@pytest.fixture
def small(tmp_path):
    """Model, variables, cfg and weights of a small detector."""
    cfg = written(tmp_path, SMALL + YOLO)
    model = darknet.read(cfg)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    path = tmp_path / "net.weights"
    write_weights(path, model, variables)
    return model, variables, cfg, path


@pytest.mark.parametrize("name", sorted(CFG))
def test_published_detectors_have_their_number_of_parameters(name, tmp_path):
    key, images = jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for model in (models.create(name), darknet.read(written(tmp_path, CFG[name](64)))):
        shapes = jax.eval_shape(model.init, key, images)
        assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == SIZES[name]
        maps, _ = jax.eval_shape(model.apply, shapes, images)
        expected = {"yolov2_voc": [2], "yolov3": [2, 4, 8], "yolov3_tiny": [2, 4]}[name]
        channels = 125 if name == "yolov2_voc" else 255
        assert [x.shape for x in maps] == [(1, side, side, channels) for side in expected]
        boxes, scores = jax.eval_shape(lambda maps, model=model: model.decode(maps, (64, 64)), maps)
        count = {"yolov2_voc": 20, "yolov3": 3 * 84, "yolov3_tiny": 60}[name]
        assert (boxes.shape, scores.shape) == ((1, count, 4), (1, count, model.num_classes))


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 5)])
def test_weights_come_back_in_their_places(small, version):
    model, variables, cfg, path = small
    write_weights(path, model, variables, version)
    loaded_model, loaded = darknet.load(cfg, path)
    assert loaded_model == model
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))


@pytest.mark.parametrize("name", ["darknet19", pytest.param("darknet53", marks=pytest.mark.exhaustive)])
def test_classifiers_take_a_file_with_or_without_head(name, tmp_path, capsys):
    model = models.create(name, num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), shapes)
    path = tmp_path / "classifier.weights"
    write_weights(path, model, variables)
    jax.tree.map(np.testing.assert_array_equal, weights.load(path, model), dict(variables))
    base = model.clone(num_classes=None)
    without = weights.load(path, base)
    assert "left out: its head, the last 3,075 numbers" in capsys.readouterr().err
    assert "head" not in without["params"]
    short = tmp_path / "classifier.conv.23"  # as Darknet's `partial` cuts a file
    write_weights(short, base, without)
    jax.tree.map(np.testing.assert_array_equal, weights.load(short, base), without)


IMAGE = jnp.arange(2 * 4 * 4 * 4, dtype=jnp.float32).reshape(2, 4, 4, 4) / 10


def test_pooling_begins_half_of_the_padding_before_the_map(tmp_path):
    image = net(4).replace("channels=3", "channels=4")
    one, two, three = (section("maxpool", size=size, stride=stride) for size, stride in ((2, 1), (2, 2), (5, 1)))
    x = np.asarray(IMAGE)
    found = outputs(tmp_path, image + one, IMAGE)[0]
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    windows = [padded[:, i : i + 4, j : j + 4] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(found, np.max(windows, axis=0))
    np.testing.assert_array_equal(outputs(tmp_path, image + two, IMAGE)[0], x[:, 1::2, 1::2])
    np.testing.assert_array_equal(outputs(tmp_path, image + three, IMAGE)[0][:, 1, 1], x[:, 3, 3])


def test_routes_groups_shortcuts_upsampling_and_averages(tmp_path):
    image = net(4).replace("channels=3", "channels=4")
    text = image + section("maxpool", size=1, stride=1) + section("route", layers=-1, groups=2, group_id=1)
    text += section("route", layers="0,-1") + section("upsample", stride=2) + section("route", layers="0")
    text += section("shortcut", **{"from": "-1,0"}, activation="relu") + section("avgpool") + section("softmax")
    same, half, both, larger, again, total, mean, last = outputs(tmp_path, text, IMAGE - 6)
    x = np.asarray(IMAGE - 6)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(half, x[..., 2:])
    np.testing.assert_array_equal(both, np.concatenate([x, x[..., 2:]], -1))
    np.testing.assert_array_equal(larger, np.asarray(both).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(again, x)
    np.testing.assert_allclose(total, np.maximum(3 * x, 0), rtol=1e-6)
    np.testing.assert_allclose(mean[:, 0, 0], np.maximum(3 * x, 0).mean((1, 2)), rtol=1e-5)
    assert last.shape == mean.shape


def test_reorg_is_the_loop_of_the_program(tmp_path):
    text = net(4).replace("channels=3", "channels=4") + section("reorg", stride=2)
    found = np.asarray(outputs(tmp_path, text, IMAGE)[0]).transpose(0, 3, 1, 2).reshape(2, -1)
    source, expected = np.asarray(IMAGE).transpose(0, 3, 1, 2).reshape(2, -1), np.zeros((2, 64), np.float32)
    for k in range(4):
        for j in range(4):
            for i in range(4):
                row, column = 2 * j + k // 2, 2 * i + k % 2  # one plane of 8 × 8 over the same memory
                expected[:, i + 4 * (j + 4 * k)] = source[:, column + 8 * row]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [-2.0, 0.0, 7.0]),
        ("leaky", [-0.2, 0.0, 7.0]),
        ("relu", [0.0, 0.0, 7.0]),
        ("relu6", [0.0, 0.0, 6.0]),
        ("logistic", [0.1192029, 0.5, 0.9990889]),
        ("swish", [-0.2384058, 0.0, 6.9936225]),
        ("mish", [-0.2525015, 0.0, 6.9999881]),
    ],
)
def test_activations_by_hand(tmp_path, name, expected):
    x = jnp.array([-2.0, 0.0, 7.0]).reshape(1, 3, 1, 1)
    text = section("net", width=1, height=3, channels=1) + conv(1, 1, norm=0, activation=name)
    found = outputs(tmp_path, text, x, {"params": {"layer0": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}}})
    np.testing.assert_allclose(found[0].ravel(), expected, rtol=1e-5, atol=1e-7)


def test_grouped_convolutions_train_and_drop_out(tmp_path):
    text = net(8) + conv(6) + conv(6, groups=6) + section("dropout", probability=0.5) + conv(4, groups=2)
    model = darknet.read(written(tmp_path, text))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert variables["params"]["layer1"]["conv"]["kernel"].shape == (3, 3, 1, 6)
    assert variables["params"]["layer3"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    x = jnp.ones((2, 8, 8, 3))
    (first, _), state = model.apply(
        variables, x, train=True, rngs={"dropout": jax.random.key(1)}, mutable="batch_stats"
    )
    (second, _), _ = model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable="batch_stats")
    assert np.abs(first - second).max() > 0
    assert np.abs(state["batch_stats"]["layer0"]["norm"]["mean"]).max() > 0


def cfg_error(tmp_path, text):
    with pytest.raises(UserError) as caught:
        darknet.read(written(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "net.cfg" in message
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no [section]"),
        ("filters=3\n", "line 1: 'filters=3' is neither"),
        (conv(3), "the first section must be [net]"),
        (net(8), "no layer follows"),
        (net("eight") + conv(4), "height=eight: a whole number from 1 is expected"),
        (net(8) + "[lstm]\n", "line 5: [lstm]: unknown section; known: avgpool, convolutional"),
        (net(8) + conv("x"), "filters=x: a whole number from 1"),
        (net(8) + conv(4, activation="gelu"), "activation=gelu; known: leaky, linear"),
        (net(8) + conv(4, groups=2), "groups=2 does not divide 3 input channels and filters=4"),
        (net(8) + conv(4, xnor=1), "xnor=1 is not supported"),
        (net(8) + conv(4) + section("route", layers="-1, 7"), "layers: layer 7 is not before layer 1"),
        (net(8) + conv(4) + section("route"), "its setting layers is missing"),
        (net(8) + conv(4) + conv(4, stride=2) + section("route", layers="0,1"), "maps of different sizes"),
        (net(8) + conv(4) + conv(5) + section("shortcut", **{"from": -2}), "different shapes, [5, 4] channels"),
        (net(8) + conv(4) + section("reorg", stride=4), "stride=4 does not fit 4 channels"),
        (net(8) + conv(4) + section("maxpool", size=2, stride=2, padding=9), "padding=9 is too much for size=2"),
        (net(8) + conv(4) + section("dropout", probability=1), "probability=1.0 must be in 0 … 1"),
        (SMALL.replace("18", "17") + YOLO, "want 18 = 2 · (5 + 4) filters before it, got 17"),
        (SMALL + YOLO.replace("num=3", "num=4"), "num=4 wants 8 anchors above 0, got 6 numbers"),
        (SMALL + YOLO.replace("0,2", "0,3"), "mask=0,3 names anchors beyond num=3"),
        (SMALL + YOLO.replace("1,2,", "1,nan,"), "numbers separated by commas are expected"),
        (SMALL + YOLO + "new_coords=1\n", "new_coords=1 is not supported"),
    ],
)
def test_a_wrong_cfg_is_one_line_with_its_place(tmp_path, text, expected):
    assert expected in cfg_error(tmp_path, text)


def test_files_that_are_no_text_or_are_not_there(tmp_path, small):
    *_, path = small
    with pytest.raises(UserError, match="is no text: give Darknet"):
        darknet.read(path)
    with pytest.raises(UserError, match="No such file or directory: give Darknet"):
        darknet.read(tmp_path / "none.cfg")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[:-4], "has 213 numbers, the model takes 214; it ends within layer2"),
        (lambda data: data[:100], "it has 20 numbers, the model takes 214; it ends within layer0/conv"),
        (lambda data: data + b"\0" * 4, "it has 215 numbers, the model takes 214"),
        (lambda data: data[:-1], "is cut short"),
        (lambda data: data[:18], "is cut short"),
        (lambda data: data[:10], "which no file of weights does"),
        (lambda data: data[:40] + np.float32(np.nan).tobytes() + data[44:], "holds NaN or infinity"),
        (lambda data: b"<!DOCTYPE html>" + data, "is a web page, not a file of weights"),
    ],
)
def test_wrong_weights_are_one_line(small, change, expected):
    _, _, cfg, path = small
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        darknet.load(cfg, path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoding_by_hand():
    grid = cells.Grid(((10, 20),), classes=2)
    raw = np.zeros((1, 2, 2, 7), np.float32)
    raw[0, 1, 0] = [0, np.log(3), np.log(2), 0, np.log(4), np.log(4), -np.log(4)]  # σ: 1/2, 3/4; 4/5; 4/5, 1/5
    boxes, scores = cells.candidates([raw], [grid], (64, 32))
    np.testing.assert_allclose(boxes[0, 2], [8 - 10, 32 + 24 - 10, 8 + 10, 32 + 24 + 10], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 2], [0.64, 0.16], rtol=1e-6)
    exclusive = cells.candidates([raw], [grid._replace(exclusive=True)], (64, 32))[1]
    np.testing.assert_allclose(exclusive[0, 2], [0.8 * 16 / 17, 0.8 / 17], rtol=1e-6)
    spread, _ = cells.candidates([raw], [grid._replace(scale=2.0)], (64, 32))
    np.testing.assert_allclose(spread[0, 2], [-2, 32 + 32 - 10, 18, 32 + 32 + 10], rtol=1e-6)
    code = cells.encode(boxes[0, 2], jnp.array([10.0, 20.0]), jnp.array([16.0, 32.0]))
    np.testing.assert_allclose(code, [0.5, 0.75, np.log(2), 0], atol=1e-6)


REGION = section("region", anchors="1,2", classes=3, num=1, softmax=1, tree="data/animals.tree")


def test_the_tree_of_yolo9000(tmp_path):
    text = net(8) + conv(8) + REGION
    (tmp_path / "cfg").mkdir()
    (tmp_path / "data").mkdir()
    (tree := tmp_path / "data" / "animals.tree").write_text("n00000000 -1\nn00000001 0\nn00000002 0\n")
    model = darknet.read(written(tmp_path / "cfg", text))
    assert model.parents == model.grids[0].parents == (-1, 0, 0)
    raw = np.zeros((1, 8, 8, 8), np.float32)
    raw[0, 0, 0, 4:] = np.log(4), 9, np.log(3), 0
    _, scores = model.decode([raw], (8, 8))
    np.testing.assert_allclose(scores[0, 0], [0.8, 0.6, 0.2], rtol=1e-5)

    found = detect.found(model, *model.decode([raw], (8, 8)), (8, 8), 0.55, 0.45)
    np.testing.assert_allclose(found["scores"][0, :2], [0.6, 0], rtol=1e-5)  # elsewhere 0.5 · 1, no child is certain
    assert found["labels"][0, 0] == 1
    every = detect.found(model, *model.decode([raw], (8, 8)), (8, 8), 0.55, 0.45, deepest=False)
    assert every["labels"][0, : every["valid"].sum()].tolist() == [0, 1]
    assert every["valid"].shape == (1, 200)

    tree.write_text("n00000000 -1\nn00000001 0\n")
    assert "its tree has 2 nodes, but classes=3" in cfg_error(tmp_path / "cfg", text)
    tree.write_text("n00000000 1\nn00000001 0\nn00000002 0\n")
    assert "animals.tree is no tree" in cfg_error(tmp_path / "cfg", text)
    tree.unlink()
    assert "tree=data/animals.tree: no such file here, beside the cfg" in cfg_error(tmp_path / "cfg", text)


def test_the_network_of_a_cfg_trains_as_a_detector(small):
    model, variables, *_ = small
    task = detect.task(model, classify.unit, list("abcd"))
    batch = {
        "image": np.random.default_rng(0).random((2, 8, 8, 3), np.float32),
        "boxes": np.array([[[1, 1, 3, 4]], [[2, 2, 8, 8]]], np.float32),
        "labels": np.array([[3], [1]]),
        "box_mask": np.ones((2, 1), bool),
    }
    graded = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
    (value, (_, sums)), gradient = graded(variables, batch, jax.random.key(0))
    assert value > 0
    assert {"box", "objectness", "class", "loss", "count"} == sums.keys()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient["params"]))
    assert np.abs(gradient["params"]["layer0"]["conv"]["kernel"]).max() > 0


def test_a_base_may_be_given_by_its_name():
    by_name, made = (
        models.create("yolov3", base=base) for base in ("mobilenet_v2", models.create("mobilenet_v2", num_classes=None))
    )
    assert by_name == made
    narrow = models.create("yolov3", base=["mobilenet_v1", {"width": 0.25}], anchors=[[1, 2], [3, 4], [5, 6]])
    assert narrow.base.width == 0.25
    assert narrow.anchors == ((1, 2), (3, 4), (5, 6))
