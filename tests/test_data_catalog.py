"""Data sets by name: the digits, prepared tfds data sets (real ones), folders of images, and their faults."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnjax.data import catalog, prepare, sources
from cnnjax.data.formats import tfds
from cnnjax.data.formats.folders import Folder
from cnnjax.data.formats.images import CorruptImageError
from cnnjax.types import UserError

COUNTS = {
    "fashion_mnist": (55000, 5000, 10000),
    "mnist": (55000, 5000, 10000),
    "tf_flowers": (2752, 551, 367),
}
FLOWERS = ("dandelion", "daisy", "tulips", "sunflowers", "roses")


@pytest.fixture
def tfds_dir(shared: Path) -> Path:
    return shared / "data" / "tfds"


@pytest.fixture
def mnist_copy(tfds_dir: Path, tmp_path: Path) -> Path:
    """Folder of a copy of mnist that a test may damage."""
    copy = tmp_path / "mnist" / "3.0.1"
    copy.mkdir(parents=True)
    for path in (tfds_dir / "mnist" / "3.0.1").iterdir():
        shutil.copyfile(path, copy / path.name)
    return copy


def python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def test_digits_are_sklearns_values_scaled_to_a_byte():
    data = load_digits()
    splits = catalog.digits()
    parts = [splits.train, splits.valid, splits.test]
    images = np.concatenate([part.fields["image"] for part in parts])
    labels = np.concatenate([part.fields["label"] for part in parts])
    assert images.shape == (1797, 8, 8, 1)
    assert len(splits.test) == 360
    assert len(splits.valid) == 144
    want = np.round(data.images * 255 / 16).astype(np.uint8)
    assert sorted(zip(labels, map(bytes, images), strict=True)) == sorted(
        zip(data.target, map(bytes, want), strict=True)
    )
    assert images.max() == 255


def test_digits_are_split_by_stratum_without_overlap():
    data = load_digits()
    whole = np.bincount(data.target) / len(data.target)
    seen: dict[bytes, int] = {}
    for part in vars(catalog.digits()).values():
        assert np.abs(np.bincount(part.fields["label"]) / len(part) - whole).max() < 0.01
        for image in part.fields["image"]:
            seen[image.tobytes()] = seen.get(image.tobytes(), 0) + 1
    assert len(seen) == len({image.astype(np.uint8).tobytes() for image in data.images})  # each image occurs once


def test_digits_are_the_same_in_every_process():
    code = (
        "import hashlib; from cnnjax.data import catalog\n"
        "parts = vars(catalog.digits()).values()\n"
        "whole = b''.join(p.fields['image'].tobytes() + p.fields['label'].tobytes() for p in parts)\n"
        "print(hashlib.sha256(whole).hexdigest())"
    )
    here = hashlib.sha256(
        b"".join(
            part.fields["image"].tobytes() + part.fields["label"].tobytes() for part in vars(catalog.digits()).values()
        )
    )
    assert python(code, PYTHONHASHSEED="5").strip() == here.hexdigest()


@pytest.mark.parametrize("name", COUNTS)
def test_tfds_counts_classes_and_order(tfds_dir: Path, name):
    splits = catalog.load(name, tfds_dir)
    assert tuple(len(part) for part in vars(splits).values()) == COUNTS[name]
    assert splits.train.classes == splits.test.classes
    assert splits.train.classes == {
        "fashion_mnist": (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        "mnist": tuple("0123456789"),
        "tf_flowers": FLOWERS,
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"), [("fashion_mnist", "test"), ("mnist", "train[55000:]"), ("tf_flowers", "train[:10%]")]
)
def test_tfds_pixels_are_those_tfds_decodes(tfds_dir: Path, name, split):
    import tensorflow_datasets

    theirs = tensorflow_datasets.data_source(name, split=split, data_dir=tfds_dir)
    ours = tfds.tfds_split(name, split, tfds_dir)
    assert len(ours) == len(theirs)
    for index in (0, 1, 17, len(theirs) - 1):
        want, got = theirs[index], ours[index]
        np.testing.assert_array_equal(got["image"], want["image"])
        assert got["image"].dtype == np.uint8
        assert got["label"] == want["label"]


def test_tfds_splits_can_be_chosen_and_do_not_overlap(tfds_dir: Path):
    texts = {"train": "train[:10%]", "valid": "train[10%:11%]", "test": None}
    splits = catalog.load("mnist", tfds_dir, texts)
    assert [len(part) for part in vars(splits).values()] == [6000, 600, 10000]
    train, valid = (sources.in_memory(part) for part in (splits.train, splits.valid))
    assert train.fields["label"][:5].tolist() == [splits.train[i]["label"] for i in range(5)]
    assert not {image.tobytes() for image in train.fields["image"]} & {
        image.tobytes() for image in valid.fields["image"]
    }


def test_tfds_source_ends(tfds_dir: Path):
    source = tfds.tfds_split("tf_flowers", "train[:3]", tfds_dir)
    assert len(list(source)) == 3
    assert source.fetched()[2]["label"] == source[2]["label"]


def test_data_dir_comes_from_the_environment(tfds_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert len(catalog.load("mnist").test) == 10000
    with pytest.raises(UserError, match=f"mnist is not prepared in {tmp_path}"):
        catalog.load("mnist", tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=f"mnist is not prepared in {tmp_path}/tensorflow_datasets: run `python -m cnnjax"
    ):
        catalog.load("mnist")


def test_reading_never_imports_tensorflow(tfds_dir: Path, tmp_path: Path):
    (tmp_path / "tensorflow").mkdir()  # a package that can be imported
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '2.99'")
    code = (
        "import sys, pathlib; from cnnjax.data import catalog\n"
        f"part = catalog.load('tf_flowers', pathlib.Path({str(tfds_dir)!r})).test\n"
        "assert part[0]['image'].shape[-1] == 3\n"
        "print([name for name in ('tensorflow', 'torch', 'keras') if name in sys.modules])"
    )
    assert python(code, PYTHONPATH=str(tmp_path)).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"test": "test"}, r"tf_flowers, split 'test': .*\['train'\]"),
        ({"valid": "train[bla"}, r"tf_flowers, split 'train\[bla': "),
        ({"train": "train[:200%]"}, r"boundaries should be in \[-100, 100\]"),
        ({"train": "train[:0%]"}, "no examples in it"),
    ],
)
def test_bad_splits_are_named(tfds_dir: Path, texts, says):
    with pytest.raises(UserError, match=says) as error:
        catalog.load("tf_flowers", tfds_dir, texts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fashion_minst", "unknown data set 'fashion_minst': did you mean fashion_mnist"),
        ("MNIST", "unknown data set 'MNIST': did you mean mnist"),
        ("zzzz", "unknown data set 'zzzz': did you mean digits, .*or the path of a folder"),
        ("not a name!", "unknown data set 'not a name!'"),
        ("", "unknown data set ''"),
        (
            "cifar10",
            r"cifar10 is not prepared in .*run `python -m cnnjax.data.prepare cifar10 --data-dir .*\[prepare\]",
        ),
        ("coco", "coco is not prepared"),  # its code would import TensorFlow
        ("emnist/balanced", "emnist/balanced is not prepared"),
        ("mnist:9.9.9", r"mnist holds only \['3.0.1'\]; if that is incomplete delete it"),
        ("no/such/folder", "no/such/folder: no such folder"),
    ],
)
def test_what_is_not_there_is_named_with_a_cure(tfds_dir: Path, name, says):
    with pytest.raises(UserError, match=says) as error:
        catalog.load(name, tfds_dir)
    assert "\n" not in str(error.value)


RECORDS = "mnist-train.array_record-00000-of-00001"


def _write(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def _without(name: str):
    return lambda folder: (folder / name).unlink()


def _as_tfrecord(folder: Path) -> None:
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without(RECORDS), rf"half prepared, missing or empty are \['{RECORDS}'\]"),
        (_write(RECORDS, ""), "half prepared, missing or empty"),
        (_as_tfrecord, "stored as tfrecord, not array_record"),
        (_without("dataset_info.json"), r"Could not read dataset info"),
        (_write("dataset_info.json", '{"name"'), "is damaged"),
        (_write("features.json", "{"), "is damaged"),
        (_without("features.json"), r"not prepared in .* holds only \['3.0.1'\]"),
    ],
)
def test_half_prepared_is_named_with_a_cure(mnist_copy: Path, damage, says):
    damage(mnist_copy)
    with pytest.raises(UserError, match=says) as error:
        catalog.load("mnist", mnist_copy.parent.parent)
    assert "delete " in str(error.value)
    assert "run `python -m cnnjax.data.prepare mnist" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0.5, 0.001])
def test_truncated_records_are_named_when_read(mnist_copy: Path, kept):
    os.truncate(mnist_copy / RECORDS, int((mnist_copy / RECORDS).stat().st_size * kept))
    splits = catalog.load("mnist", mnist_copy.parent.parent)
    with pytest.raises(UserError, match=r"mnist train\[:55000\] is damaged \(.*\): delete its folder and prepare it"):
        sources.in_memory(splits.train)
    assert splits.test[0]["image"].shape == (28, 28, 1)


def test_data_without_images_and_labels_is_refused(mnist_copy: Path):
    path = mnist_copy / "features.json"
    path.write_text(path.read_text().replace('"label"', '"target"'))
    with pytest.raises(
        UserError, match=r"mnist has no uint8 image with 1 or 3 channels and class label: it has .*target"
    ):
        catalog.load("mnist", mnist_copy.parent.parent)


def make(root: Path, *names: str, count: int = 10) -> Path:
    rng = np.random.default_rng(len(names))
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def pictures(source: sources.Source) -> set[bytes]:
    return {source[i]["image"].tobytes() for i in range(len(source))}


def test_flat_folder_is_cut_by_stratum_reproducibly(tmp_path: Path):
    make(tmp_path, "a", "b", count=20)
    splits = catalog.load(str(tmp_path))
    assert [len(part) for part in vars(splits).values()] == [28, 6, 6]
    parts = [pictures(part) for part in vars(splits).values()]
    assert len(set.union(*parts)) == 40
    for part in vars(splits).values():
        assert np.bincount([part[i]["label"] for i in range(len(part))]).tolist() == [len(part) // 2] * 2
    assert [pictures(part) for part in vars(catalog.load(str(tmp_path))).values()] == parts
    assert catalog.load(str(tmp_path), channels=1).train[0]["image"].shape == (4, 4, 1)


@pytest.mark.parametrize("valid", ["valid", "val", None])
def test_folder_of_splits_is_used_as_given(tmp_path: Path, valid):
    for part in filter(None, ("train", valid, "test")):
        make(tmp_path / part, "a", "b", count={"train": 20, "test": 3}.get(part, 2))
    (tmp_path / "notes").mkdir()
    splits = catalog.load(str(tmp_path))
    assert [len(part) for part in vars(splits).values()] == ([40, 4, 6] if valid else [34, 6, 6])
    assert splits.train.classes == ("a", "b")
    assert pictures(splits.test) == pictures(Folder.open(tmp_path / "test"))


def test_folder_errors(tmp_path: Path):
    make(tmp_path / "one", "a", "b", count=1)
    with pytest.raises(
        UserError, match="too few images to cut a test split off the 2 in 2 classes, the fewest being 1 of 'a'"
    ):
        catalog.load(str(tmp_path / "one"))
    make(tmp_path / "other" / "train", "a", "b")
    make(tmp_path / "other" / "test", "a", "c", count=1)
    with pytest.raises(UserError, match=r"test: its classes \['a', 'c'\] are not those .*\['a', 'b'\]"):
        catalog.load(str(tmp_path / "other"))
    make(tmp_path / "headless" / "test", "a", "b", count=1)
    with pytest.raises(UserError, match="headless: understood test as test; but it has no folder train with"):
        catalog.load(str(tmp_path / "headless"))
    with pytest.raises(UserError, match=r"fixed splits; \['train'\] can be chosen for tfds data sets only"):
        catalog.load(str(tmp_path / "other"), splits={"train": "train[:50%]", "test": ""})
    with pytest.raises(UserError, match="digits has fixed splits"):
        catalog.load("digits", splits={"test": "test"})


def test_a_class_may_be_called_train(tmp_path: Path):
    make(tmp_path, "bus", "train")
    assert catalog.load(str(tmp_path)).train.classes == ("bus", "train")


def said(capsys) -> str:
    """Line that was printed last."""
    return capsys.readouterr().out.splitlines()[-1]


def sizes(splits: catalog.Splits) -> dict[str, int]:
    return {part: len(source) for part, source in splits.given.items()}


def test_no_test_split_is_cut_where_train_and_valid_are_given_unless_asked_for(tmp_path: Path, capsys):
    for part, count in (("train", 20), ("val", 5)):
        make(tmp_path / part, "a", "b", count=count)
    splits = catalog.load(str(tmp_path))
    assert sizes(splits) == {"train": 40, "valid": 10}
    assert splits.last == ("valid", splits.valid)
    assert said(capsys) == f"{tmp_path}: train = train; valid = val; no test: valid is evaluated at the end"
    asked = catalog.load(str(tmp_path), fractions=catalog.Fractions(0.2, None))
    assert sizes(asked) == {"train": 32, "valid": 10, "test": 8}
    assert asked.last == ("test", asked.test)
    assert said(capsys) == f"{tmp_path}: train = train; valid = val; test = 20 % of train, by class"


def test_a_fraction_of_0_is_no_test_split(tmp_path: Path, capsys):
    make(tmp_path, "a", "b", count=20)
    assert sizes(catalog.load(str(tmp_path), fractions=catalog.Fractions(0, 0.25))) == {"train": 30, "valid": 10}
    assert said(capsys) == (
        f"{tmp_path}: train = the rest; valid = 25 % of all, by class; no test: valid is evaluated at the end"
    )
    catalog.load(str(tmp_path))
    assert said(capsys).endswith("valid = 15 % of the others, by class; test = 15 % of all, by class")
    with pytest.raises(UserError, match="there is no validation split, and 0 is its fraction: give a --valid-fraction"):
        catalog.load(str(tmp_path), fractions=catalog.Fractions(None, 0))


def test_training_wants_two_classes(tmp_path: Path):
    make(tmp_path, "a")
    with pytest.raises(UserError, match=r"'a' is its only class folder; a classifier needs two or more$"):
        catalog.load(str(tmp_path))


def flowers_as(name: str, root: Path, tfds_dir: Path, *splits: str) -> None:
    """Writes a data set with the 3,670 flowers in each of its splits."""
    source, folder = tfds_dir / "tf_flowers" / "3.0.1", root / name / "3.0.1"
    folder.mkdir(parents=True)
    info = json.loads((source / "dataset_info.json").read_text())
    info |= {"name": name, "splits": [{**info["splits"][0], "name": split} for split in splits]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for file in ("features.json", "label.labels.txt"):
        shutil.copyfile(source / file, folder / file)
    for split in splits:
        records = source / "tf_flowers-train.array_record-00000-of-00001"
        (folder / f"{name}-{split}.array_record-00000-of-00001").symlink_to(records)


@pytest.mark.parametrize(
    ("there", "fractions", "counts", "says"),
    [
        (
            ("train", "validation", "test"),
            (None, None),
            (3670, 3670, 3670),
            "train = train; valid = validation; test = t",
        ),
        (
            ("train", "validation", "test"),
            (0.5, 0.5),
            (3670, 3670, 3670),
            "train = train; valid = validation; test = t",
        ),
        (
            ("train",),
            (None, None),
            (2652, 468, 550),
            "train = train[550:3202]; valid = train[3202:]; test = train[:550]",
        ),
        (
            ("train",),
            (0.5, 0.2),
            (1468, 367, 1835),
            "train = train[1835:3303]; valid = train[3303:]; test = train[:1835]",
        ),
        (
            ("train",),
            (0, None),
            (3120, 550),
            "train = train[0:3120]; valid = train[3120:]; no test: valid is evaluated",
        ),
        (
            ("train", "test"),
            (None, None),
            (3120, 550, 3670),
            "train = train[0:3120]; valid = train[3120:]; test = test",
        ),
        (("train", "validation"), (None, None), (3670, 3670), "train = train; valid = validation; no test: valid is"),
        (
            ("train", "validation"),
            (0.1, None),
            (3303, 3670, 367),
            "train = train[367:3670]; valid = validation; test = ",
        ),
    ],
)
def test_the_publisher_s_splits_are_used_and_others_cut(tmp_path, tfds_dir, there, fractions, counts, says, capsys):
    flowers_as("cats_vs_dogs", tmp_path, tfds_dir, *there)
    splits = catalog.load("cats_vs_dogs", tmp_path, fractions=catalog.Fractions(*fractions))
    assert tuple(sizes(splits).values()) == counts
    assert said(capsys).startswith(f"cats_vs_dogs: {says}")


def test_splits_that_are_chosen_replace_the_publisher_s(tmp_path: Path, tfds_dir: Path):
    flowers_as("cats_vs_dogs", tmp_path, tfds_dir, "unlabelled", "test")
    with pytest.raises(UserError, match="cats_vs_dogs has no split train, only unlabelled, test: choose all three"):
        catalog.load("cats_vs_dogs", tmp_path)
    texts = {"train": "test[:100]", "valid": "test[100:120]", "test": "test[120:150]"}
    assert sizes(catalog.load("cats_vs_dogs", tmp_path, texts)) == {"train": 100, "valid": 20, "test": 30}


def test_fractions_replace_the_chapter_s_cut_of_the_flowers(tfds_dir: Path):
    assert sizes(catalog.load("tf_flowers", tfds_dir, fractions=catalog.Fractions(0, 0.1))) == {
        "train": 3303,
        "valid": 367,
    }
    with pytest.raises(UserError, match="digits has fixed splits: leave out the fractions"):
        catalog.load("digits", fractions=catalog.Fractions(0, None))


def test_which_of_a_folder_and_a_data_set_of_its_name_is_taken_is_said(
    tmp_path: Path, tfds_dir: Path, monkeypatch, capsys
):
    monkeypatch.chdir(make(tmp_path, "digits", "mnist/a", "mnist/b", "coco/a", "coco/b", "photos/a", "photos/b"))
    catalog.load("digits")
    assert said(capsys) == "digits is taken for the data set of this name; write ./digits for the folder"
    assert catalog.load("mnist", tfds_dir).train.classes == tuple("0123456789")
    assert capsys.readouterr().out.startswith(
        "mnist is taken for the data set of this name; write ./mnist for the folder\n"
    )
    assert catalog.load("coco").train.classes == ("a", "b")
    assert capsys.readouterr().out.startswith(
        "coco is taken for the folder here, not for the tfds data set of this name\n"
    )
    for name in ("./mnist", "photos", str(tmp_path / "coco")):
        assert catalog.load(name).train.classes == ("a", "b")
    assert "taken" not in capsys.readouterr().out


def test_known_names_win_over_folders_and_others_do_not(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "digits", "mnist", "coco"))
    assert [catalog.is_folder(name) for name in ("digits", "mnist", "coco", "./mnist", "nothing")] == [
        False, False, True, True, False,
    ]  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert catalog.load(f"~/{tmp_path.name}").train.classes == ("coco", "digits", "mnist")


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed here")
def test_prepare_without_tensorflow_says_so_in_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "cnnjax.data.prepare", "mnist", "--data-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: preparing a data set needs TensorFlow: pip install -e '.[prepare]'\n"
    assert not list(tmp_path.iterdir())


def test_prepare_reports_what_tfds_says(mnist_copy: Path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
    _as_tfrecord(mnist_copy)
    with pytest.raises(UserError, match=r"preparing mnist in .* failed \(ValueError: .*already set") as error:
        prepare.prepare("mnist", mnist_copy.parent.parent)
    assert "\n" not in str(error.value)


def test_damaged_record_of_an_image_is_named(tfds_dir: Path):
    good = tfds.tfds_split("mnist", "test[:5]", tfds_dir).fetched()
    records = [*good.records[:3], {"image": b"no image", "label": 1}]
    with pytest.raises(CorruptImageError, match=r"test, example 3: not a readable image .*1 of 4 images"):
        sources.in_memory(sources.Subset(tfds.Tfds(records, good.classes, 1, "test"), np.arange(4)))


def test_a_new_data_set_is_one_entry(tfds_dir: Path, monkeypatch):
    monkeypatch.setitem(catalog.TFDS, "mnist", {"train": "train[:10]", "valid": "train[10:15]", "test": "test[:5]"})
    assert [len(part) for part in vars(catalog.load("mnist", tfds_dir)).values()] == [10, 5, 5]
    monkeypatch.setitem(catalog.EMBEDDED, "more_digits", catalog.digits)
    assert len(catalog.load("more_digits").test) == 360
    with pytest.raises(UserError, match="did you mean more_digits"):
        catalog.load("more_digitz", tfds_dir)


# ---- annotated ----


def voc(root: Path, objects: dict[str, list[str]], **lists: list[str]) -> Path:
    """Writes a VOC folder of ``image → classes of its objects``, and lists of images."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>4</ymax></bndbox>"
    for name, classes in objects.items():
        Image.new("RGB", (9, 6)).save(root / "JPEGImages" / f"{name}.png")
        inner = "".join(f"<object><name>{c}</name>{box.format(i + 3)}</object>" for i, c in enumerate(classes))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{inner}</annotation>")
    for name, names in lists.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(names))
    return root


def paths(source: sources.Source) -> list[str]:
    """Names of the images of a (subset of a) source of annotated images, in order."""
    if isinstance(source, sources.Subset):
        whole = paths(source.source)
        return [whole[i] for i in source.indices]
    return [record.path.stem for record in source.annotations.records]


def test_annotated_images_are_cut_by_class_where_each_has_one_object(tmp_path: Path):
    objects = {f"{i:02}": ["cat" if i % 4 else "dog"] for i in range(40)} | {"x": ["cat", "dog"], "y": []}
    splits = catalog.load_annotated(voc(tmp_path, objects), 0.2, 0.25, objects=1)
    assert [len(part) for part in vars(splits).values()] == [24, 8, 8]
    assert sorted(name for part in vars(splits).values() for name in paths(part)) == [f"{i:02}" for i in range(40)]
    for part in vars(splits).values():
        assert sum(part[i]["labels"][0] for i in range(len(part))) == len(part) // 4
    # By hand, with the calls that have always cut the splits.
    labels = np.array([0 if i % 4 else 1 for i in range(40)])
    rest, test = train_test_split(np.arange(40), test_size=0.2, stratify=labels, random_state=0)
    train, valid = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=0)
    for part, want in ((splits.train, train), (splits.valid, valid), (splits.test, test)):
        assert paths(part) == [f"{i:02}" for i in want]
    whole = catalog.load_annotated(tmp_path, 0.2, 0.25)
    assert sum(len(part) for part in vars(whole).values()) == 42
    assert [paths(p) for p in vars(catalog.load_annotated(tmp_path, 0.2, 0.25)).values()] == [
        paths(p) for p in vars(whole).values()
    ]
    example = whole.train[0]
    assert {name: values.dtype for name, values in example.items()} == {
        "image": np.uint8, "boxes": np.float32, "labels": np.int32, "ignore": bool, "crowd": bool, "difficult": bool,
    }  # fmt: skip


def test_one_split_may_be_chosen_and_is_cut(tmp_path):
    names = [f"{i:02}" for i in range(40)]
    objects = {name: ["cat" if i % 2 else "dog"] for i, name in enumerate(names)}
    root = voc(tmp_path, objects, night=names[:20], day=names[20:])
    splits = catalog.load_annotated(root, 0.2, 0.25, 1, "night")
    assert sorted(name for part in vars(splits).values() for name in paths(part)) == names[:20]
    assert [len(part) for part in vars(splits).values()] == [12, 4, 4]


def test_named_splits_of_annotated_images_are_taken(tmp_path: Path, capsys):
    objects = {f"{i:02}": ["cat"] for i in range(20)}
    names = list(objects)
    splits = catalog.load_annotated(voc(tmp_path / "a", objects, train=names[:14], val=names[14:]), 0.5, 0.9, 1)
    assert [len(part) for part in vars(splits).values()] == [7, 6, 7]
    assert paths(splits.valid) == names[14:]
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'a'}, train: 14 images, 0 faults in their labels"
    with pytest.raises(UserError, match=r"13\.png is in the splits train and test: take it out of one"):
        catalog.load_annotated(voc(tmp_path / "b", objects, train=names[:14], test=names[13:]), 0.5, 0.5)
    with pytest.raises(UserError, match="too few"):
        catalog.load_annotated(voc(tmp_path / "c", {"a": ["cat"], "b": ["dog"]}), 0.5, 0.5, 1)


def test_named_splits_are_found_by_their_usual_names(tmp_path: Path, capsys):
    names = [f"{i:02}" for i in range(20)]
    objects = {name: ["cat"] for name in names}
    lists = {"Training": names[:12], "validation": names[12:16], "cat_train": names}
    splits = catalog.load_annotated(voc(tmp_path / "a", objects, **lists))
    assert sizes(splits) == {"train": 12, "valid": 4}
    assert (
        said(capsys)
        == f"{tmp_path / 'a'}: train = its train; valid = its valid; no test: valid is evaluated at the end"
    )
    lists = {"trainval": names[:14], "test": names[14:]}
    assert sizes(catalog.load_annotated(voc(tmp_path / "b", objects, **lists))) == {"train": 11, "valid": 3, "test": 6}
    capsys.readouterr()
    assert sum(sizes(catalog.load_annotated(voc(tmp_path / "c", objects, test=names[14:]))).values()) == 20
    says = "c: its split test is not used, as there is no split train: all images are read"
    assert says in capsys.readouterr().out


def test_an_annotated_evaluation_split_may_lack_classes(tmp_path: Path):
    objects = {f"{i:02}": ["cat" if i % 2 else "dog"] for i in range(20)}
    lists = {"train": list(objects)[:16], "val": ["17"], "test": ["18"]}
    splits = catalog.load_annotated(voc(tmp_path, objects, **lists), objects=1)
    assert [source.classes for source in splits.given.values()] == [("cat", "dog")] * 3
    assert splits.last[1][0]["labels"].tolist() == [1]
