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
import predict
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cnnjax import serving, settings
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
    variables = jax.jit(model.init)(jax.random.key(3), np.zeros((1, SIZE, SIZE, 3), np.float32))
    louder = jax.tree_util.tree_map_with_path(
        lambda path, x: 200 * x if "head" in jax.tree_util.keystr(path) else x, variables["params"]
    )
    return serving.Served(known, model, {**variables, "params": louder})


IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8) // np.arange(1, 6)[:, None, None, None]
IMAGES = IMAGES.astype(np.uint8)
TASKS = [
    ("classify", {}),
    ("transfer", {"dropout": 0.3}),
    ("localize", {"box_features": 8}),
    ("localize", {"box_features": None}),
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


def used(program: Path, *photos: object) -> list[dict]:
    """Output of use_exported.py, in a process that cannot import cnnjax."""
    code = f"""
import sys
sys.modules["cnnjax"] = None  # an import of it fails
sys.path.insert(0, {str(EXPERIMENTS)!r})
import use_exported
use_exported.main(use_exported.Path({str(program)!r}), {[str(photo) for photo in photos]!r})
assert not [name for name in sys.modules if name.startswith("cnnjax.")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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
    lines = used(tmp_path / "exported" / "network.stablehlo", *photos)
    for ours, theirs in zip(entries, lines, strict=True):
        scores = {p["name"]: p["score"] for p in ours["predictions"]}
        assert len(scores) == 10
        assert list(theirs["scores"]) == [p["name"] for p in ours["predictions"][:5]]
        np.testing.assert_allclose(list(theirs["scores"].values()), list(scores.values())[:5], atol=1e-6)


@pytest.mark.parametrize("fit", ["crop", "squeeze", "square", "center"])
def test_the_exported_script_prepares_photos_as_we_do(fit, tmp_path):
    import use_exported

    known = serving.Card(**{**vars(card("classify")), "fit": fit})
    about = {name: getattr(known, name) for name in ("fit", "image_size", "channels", "resize", "resample")}
    with Image.open(load_sample_images().filenames[0]) as photo:
        for size in ((121, 80), (80, 121), (55, 49), (48, 48), (333, 222)):
            image = photo.resize(size)
            ours = known.transform()({"image": np.asarray(image)})["image"]
            np.testing.assert_array_equal(use_exported.prepare(image, about), ours)


def test_the_exported_published_network_says_what_keras_weights_say(shared, tmp_path):
    weights = {"weights": "mobilenet_v1_0.75_224.keras", "file": shared / "weights" / "mobilenet_7_5_224_tf.h5"}
    summary = export.main(
        settings.change(export.Config(), **weights, run_dir=tmp_path / "e", resize="squeeze", platforms=("cpu",))
    )
    assert summary["largest_difference"] < 1e-5
    china, _ = used(tmp_path / "e" / "network.stablehlo", *load_sample_images().filenames)
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
