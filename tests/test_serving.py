"""Networks kept, loaded, exported: their predictions stay the same, also in a process without cnnjax."""

import json
import subprocess
import sys
from pathlib import Path

import classify
import export
import jax
import jax.export
import numpy as np
import peers
import predict
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cnnjax import serving, settings
from cnnjax.data import preparation
from cnnjax.types import UserError

pytestmark = pytest.mark.usefixtures("one_device")

EXPERIMENTS = Path(classify.__file__).parent
SIZE = 48


def card(task, **head) -> serving.Card:
    return serving.Card(
        task=task,
        model="mobilenet_v1",
        fields={"width": 0.25, "dtype": "float32"},
        head=head,
        classes=("cat", "dog", "owl"),
        preprocess="tf",
        image_size=SIZE,
        channels=3,
        fit="squeeze",
        resize=60,
        resample="bilinear",
    )


def served(task, **head) -> serving.Served:
    """Network with random weights whose predictions differ between images."""
    known = card(task, **head)
    model = known.module()
    variables = peers.drawn(model, (SIZE, SIZE, 3))
    louder = jax.tree_util.tree_map_with_path(
        lambda path, x: 5 * x if "head" in jax.tree_util.keystr(path) else x, variables["params"]
    )
    return serving.Served(known, model, {**variables, "params": louder})


IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8) // np.arange(1, 6)[:, None, None, None]
IMAGES = IMAGES.astype(np.uint8)
TASKS = [
    ("classify", {}),
    pytest.param("transfer", {"dropout": 0.3}, marks=pytest.mark.exhaustive),
    pytest.param("localize", {"box_features": 8}, marks=pytest.mark.exhaustive),
    pytest.param("localize", {"box_features": None}, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("task", "head"), TASKS)
def test_a_network_is_loaded_and_exported_as_it_was(task, head, tmp_path):
    ours = served(task, **head)
    expected = jax.jit(ours.predict)(ours.variables, IMAGES)
    assert np.ptp(expected["probabilities"], axis=0).max() > 0.02  # else the comparison would mean nothing
    serving.save(tmp_path, ours)
    again = serving.load(tmp_path)
    assert again.card == ours.card
    jax.tree.map(np.testing.assert_array_equal, again.variables, ours.variables)

    path = tmp_path / "network.stablehlo"
    serving.export(again, path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    for count in (1, 5):
        found = program.call(IMAGES[:count])
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"][:count], atol=1e-5)
        if task == "localize":
            np.testing.assert_allclose(found["boxes"], expected["boxes"][:count], atol=1e-2)


def test_what_cannot_be_loaded_is_one_error(tmp_path):
    with pytest.raises(UserError, match="there is no such run folder"):
        serving.load(tmp_path / "gone")
    with pytest.raises(UserError, match="a run leaves it when its training has ended"):
        serving.load(tmp_path)
    serving.save(tmp_path, served("transfer", dropout=0.0))
    good = (tmp_path / "model.json").read_text()
    damaged = ("{", "[]", "{}", '{"a": 1}', good.replace("mobilenet_v1", "mobilenet_v9"), good.replace("dropout", "x"))
    for text in (*damaged, good.replace("transfer", "translate"), good.replace("0.25", '"wide"')):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(UserError) as error:
            serving.load(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "model.json").write_text(good.replace('"owl"', '"owl", "ox"'))
    with pytest.raises(UserError, match=r"head"):
        serving.load(tmp_path)
    (tmp_path / "model.json").write_text(good)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        serving.load(tmp_path)


def used(exported: Path, *photos: object) -> list[dict]:
    """Output of the exported use_exported.py, in a process that cannot import cnnjax; it leaves out ``bad.png``."""
    bad = exported / "bad.png"
    bad.write_bytes(b"no image")
    code = f"""
import sys
sys.modules["cnnjax"] = None  # an import of it fails
sys.path.insert(0, {str(exported)!r})
import use_exported
bad = use_exported.main(use_exported.Path("network.stablehlo"), {[str(path) for path in (bad, *photos)]!r})
assert not [name for name in sys.modules if name.startswith("cnnjax.")]
sys.exit(bad)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=exported)
    assert done.returncode == 1, done.stderr
    assert f"{bad}: not a readable image (damaged, or no image of a known kind" in done.stderr
    assert (exported / "use_exported.py").read_bytes() == Path(preparation.__file__).read_bytes()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_predicts_and_its_export_says_the_same_without_cnnjax(tmp_path):
    run = tmp_path / "digits"
    config = settings.change(classify.recipe("digits"), run_dir=run, smoke=True)
    classify.main(config)
    splits = classify.load_data(classify.resolve(config))
    photos = []
    for i in range(6):
        photos.append(tmp_path / f"{i}.png")
        Image.fromarray(splits.test.fields["image"][i, ..., 0]).resize((30 + i, 40)).save(photos[-1])
    values = {"images": tuple(map(str, photos)), "run": run, "run_dir": tmp_path / "predicted", "top": 20}
    predict.main(settings.change(predict.Config(), **values))
    entries = json.loads((tmp_path / "predicted" / "predictions.json").read_text())["images"]
    export.main(settings.change(export.Config(), run=run, run_dir=tmp_path / "exported"))
    lines = used(tmp_path / "exported", *photos)
    for ours, theirs in zip(entries, lines, strict=True):
        scores = {p["name"]: p["score"] for p in ours["predictions"]}
        assert len(scores) == 10
        assert list(theirs["scores"]) == [p["name"] for p in ours["predictions"][:5]]
        np.testing.assert_allclose(list(theirs["scores"].values()), list(scores.values())[:5], atol=1e-6)


def test_arrays_become_images_by_their_type(tmp_path):
    known = card("classify")
    color = np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(color).save(path)
    expected = known.pixels([path])
    assert (expected.shape, expected.dtype) == ((1, SIZE, SIZE, 3), np.uint8)
    opaque = np.dstack([color, np.full((60, 70), 255, np.uint8)])
    for same in (
        color,
        jax.numpy.asarray(color),
        color.astype(np.uint16) << 8 | 9,
        color / 255,
        (color / 255).astype(np.float32),
        opaque,
    ):
        np.testing.assert_array_equal(known.pixels([same]), expected)
    gray = known.pixels([color[..., 0], color[..., :1], color[..., 0] / 255])
    for each in gray:
        np.testing.assert_array_equal(each, known.pixels([color[..., :1].repeat(3, -1)])[0])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((9, 9, 3), 200.0), r"image 1: floats are expected in 0 … 1, got 200 … 200: scale them"),
        (np.full((9, 9, 3), -0.5), "got -0.5 … -0.5"),
        (np.full((9, 9), np.nan), "got nan … nan"),
        (np.zeros((9, 9, 3), int), "type int64 have no fixed range: make them uint8 or uint16"),
        (np.zeros((9, 9, 2), np.uint8), r"as \[h, w\] or \[h, w, 1, 3 or 4\], got the shape \[9, 9, 2\]"),
        (np.zeros((1, 9, 9, 3), np.uint8), r"got the shape \[1, 9, 9, 3\]"),
        (np.zeros((0, 9, 3), np.uint8), r"got the shape \[0, 9, 3\]"),
        (Image.new("P", (9, 9)), "image 1: a path or an array is expected, got Image"),
        ("gone.png", r"gone\.png: not a readable image \(there is no such file\)"),
    ],
)
def test_arrays_of_no_known_range_and_missing_files_are_one_error(image, says):
    with pytest.raises(UserError, match=says):
        card("classify").pixels([np.zeros((9, 9), np.uint8), image])
    with pytest.raises(UserError, match="no images are given"):
        card("classify").pixels([])


def test_a_network_takes_only_prepared_images():
    ours = served("classify")
    for wrong in (IMAGES / 255, IMAGES.astype(np.uint16), IMAGES[..., 0], IMAGES[:, 1:]):
        with pytest.raises(
            UserError, match=rf"expected as uint8 \[n, {SIZE}, {SIZE}, 3\], got .* card.pixels\(images\)"
        ):
            ours.predict(ours.variables, wrong)


@pytest.mark.exhaustive
def test_the_exported_published_network_says_what_keras_weights_say(shared, tmp_path):
    weights = {"weights": "mobilenet_v1_0.75_224.keras", "file": shared / "weights" / "mobilenet_7_5_224_tf.h5"}
    summary = export.main(
        settings.change(export.Config(), **weights, run_dir=tmp_path / "e", resize="squeeze", platforms=("cpu",))
    )
    assert summary["largest_difference"] < 1e-5
    china, _ = used(tmp_path / "e", *load_sample_images().filenames)
    names = [name.split()[1] for name in china["scores"]]
    assert names == ["beacon", "palace", "bell_cote", "stupa", "dome"]


def test_export_refuses_what_cannot_be(tmp_path):
    for given, named in ((("cpu", "npu"), "cpu, npu"), ((), "none")):
        with pytest.raises(UserError, match=f"--platforms are of cpu, cuda, rocm, tpu; got {named}"):
            export.main(settings.change(export.Config(), platforms=given, smoke=True))
    with pytest.raises(UserError, match="leave out"):
        export.main(settings.change(export.Config(), run=tmp_path, smoke=True))


def test_cards_of_older_runs_are_read(tmp_path):
    ours = served("localize", box_features=8)
    serving.save(tmp_path, ours)
    card = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(card.replace("box_features", "box_maps"))
    assert serving.load(tmp_path).card == ours.card
