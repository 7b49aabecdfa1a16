"""Top-1 and top-5: Keras' predictions for real photos, scikit-learn's counts for random scores; no image is dropped."""

import csv
import json
import shutil
from pathlib import Path

import evaluate
import jax
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from cnnjax import pretrained, serving, settings
from cnnjax.data import sources
from cnnjax.data.formats import folders, tfds
from cnnjax.metrics import classification
from cnnjax.tasks import classify
from cnnjax.types import UserError
from cnnjax.weights.hub import labels

TAG, FILE = "mobilenet_v1_0.75_224.keras", "mobilenet_7_5_224_tf.h5"
WNIDS = list(labels.imagenet_index())
NAMES = labels.imagenet_classes()


def config_of(**values):
    """Config with these values, which may be fields of its groups."""
    return settings.change(evaluate.Config(), **values)


def cropped(path: Path) -> np.ndarray:
    """Image with the shorter side resized to 256, bilinear, then the center, by PIL alone."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        short = min(image.size)
        width, height = (int(256 * side / short) for side in image.size)
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + 224, top + 224)))


@pytest.mark.exhaustive
def test_published_weights_say_what_keras_says_of_real_photos(shared, tmp_path):
    import keras

    folder, weights = shared / "data" / "imagenet_samples", shared / "weights" / FILE
    config = config_of(dataset=str(folder), weights=TAG, file=weights, batch_size=40, run_dir=tmp_path)
    summary = evaluate.main(config)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert (summary["count"], summary["unreadable"]) == (200, 0)
    assert abs(summary["top1_correct"] - 172) <= 2  # REFERENCE.md's, by Keras
    assert abs(summary["top5_correct"] - 194) <= 2
    assert summary["top1"] == summary["top1_correct"] / 200
    with (tmp_path / "confusion.csv").open(newline="") as file:
        predictions = {row["true"]: row["predicted"] for row in csv.DictReader(file)}
    assert sum(true == predicted for true, predicted in predictions.items()) == summary["top1_correct"]

    # There is one photo of each class, so the rows show the prediction for each photo.
    peer = keras.applications.MobileNet((224, 224, 3), alpha=0.75, weights=None)
    peer.load_weights(weights)
    paths = sorted(folder.glob("*/*"))[::5]
    photos = np.stack([cropped(path) for path in paths]).astype(np.float32)
    theirs = peer.predict(keras.applications.mobilenet.preprocess_input(photos), batch_size=len(paths), verbose=0)
    assert [predictions[path.parent.name] for path in paths] == [WNIDS[i] for i in theirs.argmax(1)]


def test_figures_and_confusion_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 10, 500), rng.normal(size=(500, 10)).astype(np.float32)
    rows = {
        "label": truth,
        "rank": np.asarray(classification.ranks(scores, truth)),
        "loss": np.asarray(classify.cross_entropy(scores, truth)),
        "predicted": scores.argmax(1),
    }
    figures = classification.top_figures(rows)
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(truth, scores, k=k, normalize=False)
        assert figures[f"top{k}_correct"] == expected
        assert figures[f"top{k}"] == expected / 500
    np.testing.assert_allclose(figures["loss"], sklearn.metrics.log_loss(truth, jax.nn.softmax(scores)), rtol=1e-5)
    assert figures["count"] == 500
    matrix = np.zeros((10, 10), int)
    cells = classification.confused(rows)
    for true, predicted, n in cells:
        matrix[true, predicted] = n
    np.testing.assert_array_equal(matrix, sklearn.metrics.confusion_matrix(truth, scores.argmax(1)))
    assert [n for *_, n in cells] == sorted((n for *_, n in cells), reverse=True)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Folder of six images in two of the classes, and a file that is no image."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for wnid in (WNIDS[700], WNIDS[3]):
        (root / wnid).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (140, 150, 3), dtype=np.uint8)).save(root / wnid / f"{i}.png")
    (root / WNIDS[3] / "1b.png").write_bytes(b"damaged")
    return root


def test_some_of_the_classes_and_an_unreadable_image(photos, tmp_path, capsys):
    config = config_of(dataset=str(photos), smoke=True, run_dir=tmp_path / "run")
    summary = evaluate.main(config)
    assert (summary["count"], summary["unreadable"]) == (6, 1)
    (error,) = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    assert error.startswith(f"{photos / WNIDS[3] / '1b.png'}: not a readable image (")
    printed = capsys.readouterr()
    assert f"left out: {error}" in printed.err
    assert "RANDOM WEIGHTS" in printed.out
    with (tmp_path / "run" / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["true"] for row in rows} == {WNIDS[3], WNIDS[700]}
    assert sum(int(row["images"]) for row in rows) == 6
    assert (tmp_path / "run" / "worst.png").exists()


def test_one_split_of_a_folder_is_evaluated(photos):
    (photos.parent / "all").mkdir()
    photos.rename(photos.parent / "all" / "test")
    shutil.copytree(photos.parent / "all" / "test", photos.parent / "all" / "train")
    dataset = str(photos.parent / "all")
    data = evaluate.load_data(config_of(dataset=dataset, split="test"), NAMES, 3)
    assert len(data) == 7
    for split in (None, "valid"):
        with pytest.raises(UserError, match="has the splits train, test: choose one of them by --split"):
            evaluate.load_data(config_of(dataset=dataset, split=split), NAMES, 3)


def test_smoke_needs_nothing(tmp_path):
    summary = evaluate.main(config_of(smoke=True, run_dir=tmp_path))
    assert summary["count"] == 2


def test_a_tfds_split_is_evaluated_by_its_class_names(monkeypatch, tmp_path):
    images, truth = np.zeros((3, 20, 30, 3), np.uint8), np.array([1, 0, 1], np.int32)
    split = sources.Arrays({"image": images, "label": truth}, (WNIDS[9], WNIDS[4]))
    monkeypatch.setattr(tfds, "tfds_split", lambda *arguments: asked.append(arguments) or split)
    asked: list[tuple] = []
    data = evaluate.load_data(config_of(dataset="imagenet_v2", split="test[:3]", data_dir=tmp_path), NAMES, 3)
    assert asked == [("imagenet_v2", "test[:3]", tmp_path)]
    assert [data[i]["label"] for i in range(3)] == [4, 9, 4]
    assert data.classes == tuple(WNIDS)


def test_classes_are_matched_by_wordnet_id_or_all_names():
    assert evaluate.places([WNIDS[5], WNIDS[2]], NAMES, "x").tolist() == [5, 2]
    names = [name for _, name in NAMES]
    assert evaluate.places(names, NAMES, "x").tolist() == list(range(1000))
    with pytest.raises(
        UserError, match=r"flowers: expected classes called as the network.s 1000, .*got daisy \(1 of 2 unkno"
    ):
        evaluate.places(["daisy", WNIDS[0]], NAMES, "flowers")
    assert evaluate.places(["dog", "cat"], [("", "cat"), ("", "dog")], "x").tolist() == [1, 0]  # of a run


def test_weights_that_give_no_numbers_are_an_error(photos):
    network = pretrained.network(settings.SMOKE, random=True)
    damaged = jax.tree.map(lambda x: x * np.nan, network.variables)
    served = serving.of_published(network._replace(variables=damaged), "crop")
    blank = {"image": np.zeros((128, 128, 3), np.uint8), "label": np.int32(0)}
    source = sources.Lenient(sources.Mapped(folders.Folder.open(photos), served.card.transform()), blank)
    with pytest.raises(UserError, match="the network gives NaN or infinity"):
        evaluate.evaluate(served, source, 8)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "give the images: a folder with sub-folders named by WordNet id"),
        ({"dataset": "no/such/folder"}, "no/such/folder: no such folder"),
        ({"dataset": "imagenet_v3"}, "unknown data set 'imagenet_v3'"),
        ({"smoke": True, "batch_size": 0}, "--batch-size must be above 0, got 0"),
        ({"smoke": True, "batch_size": 9}, "batch size 9 does not divide over 8 devices"),
    ],
)
def test_what_cannot_be_is_one_error(fields, says, tmp_path):
    with pytest.raises(UserError, match=says):
        evaluate.main(config_of(run_dir=tmp_path / "run", **fields))
