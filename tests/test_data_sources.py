"""Sources: arrays checked, folders listed and read, damaged images named and counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import sources, transforms
from cnnjax.data.formats.folders import Folder
from cnnjax.data.formats.images import CorruptImageError
from cnnjax.types import UserError

IMAGES = np.zeros((4, 6, 5, 3), np.uint8)
LABELS = np.array([0, 1, 1, 0])


def save(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = (5, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for index, name in enumerate(("dog/2.png", "cat/b.png", "cat/a.jpg", "dog/old/1.gif", "ant/x.BMP")):
        save(tmp_path / name, 40 * index)
    return tmp_path


def test_arrays_give_examples_and_batches():
    source = sources.Arrays({"image": IMAGES, "label": LABELS}, ("a", "b"))
    assert len(source) == 4
    assert source[2]["label"] == 1
    assert source[2]["label"].dtype == np.int32
    assert source[np.array([1, 3])]["image"].shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (IMAGES.astype(np.float32), LABELS, "uint8.*float32"),
        (IMAGES[..., 0], LABELS, r"\(4, 6, 5\)"),
        (IMAGES[..., :2], LABELS, r"1 or 3.*\(4, 6, 5, 2\)"),
        (IMAGES, LABELS[:3], r"integers \[4\].*\(3,\)"),
        (IMAGES, LABELS.astype(float), "integers.*float64"),
        (IMAGES, LABELS[:, None], r"\(4, 1\)"),
        (IMAGES, np.array([0, 1, 2, 2]), r"0 … 1 \(2 classes\): example 2 has label 2 \(2 such"),
        (IMAGES, np.array([0, -1, 0, 1]), "example 1 has label -1"),
    ],
)
def test_arrays_refuse_what_does_not_fit(images, labels, says):
    with pytest.raises(UserError, match=says):
        sources.Arrays({"image": images, "label": labels}, ("a", "b"))


def test_folder_lists_classes_and_files_in_order(animals: Path):
    save(animals / ".hidden" / "1.png")
    save(animals / "cat" / "._a.png")
    save(animals / "cat" / ".thumbs" / "1.png")
    (animals / "cat" / "notes.txt").write_text("no image")
    (animals / "dog" / "folder.png").mkdir()
    (animals / "top.png").write_bytes(b"")
    folder = Folder.open(animals)
    assert folder.classes == ("ant", "cat", "dog")
    assert [str(path.relative_to(animals)) for path in folder.paths] == [
        "ant/x.BMP", "cat/a.jpg", "cat/b.png", "dog/2.png", "dog/old/1.gif",
    ]  # fmt: skip
    assert [folder[i]["label"] for i in range(5)] == [0, 1, 1, 2, 2]
    assert [int(folder[i]["image"].max()) for i in range(5)] == [160, 80, 40, 0, 120]


def test_files_left_out_of_a_folder_are_counted_in_one_line(animals: Path, capsys):
    for name in ("cat/1.HEIC", "dog/2.heic", "dog/notes.txt", "dog/.hidden.txt"):
        (animals / name).write_bytes(b"")
    save(animals / "cat" / "c.jpg").rename(animals / "cat" / "c.jfif")
    assert len(Folder.open(animals)) == 6
    assert capsys.readouterr().out == f"{animals}: left out: 2 .heic (pip install pillow-heif), 1 .txt\n"
    (animals / "cow").mkdir()
    (animals / "cow" / "1.heic").write_bytes(b"")
    left = r"\(left out: 3 \.heic \(pip install pillow-heif\), 1 \.txt\)$"
    with pytest.raises(UserError, match=rf"no images in class folder\(s\) \['cow'\]: add some, .* {left}"):
        Folder.open(animals)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_brings_all_kinds_of_files_to_the_same_channels(tmp_path: Path, channels):
    for name, mode in {"l.png": "L", "rgba.png": "RGBA", "p.gif": "P", "cmyk.jpg": "CMYK", "bit.png": "1"}.items():
        save(tmp_path / "a" / name, 255, mode)
    save(tmp_path / "b" / "rgb.jpg", 255)
    arrays = sources.in_memory(Folder.open(tmp_path, channels))
    assert arrays.fields["image"].shape == (6, 6, 5, channels)
    assert arrays.fields["image"].min() >= 250


def test_folder_turns_photos_upright(animals: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 4)).save(animals / "ant" / "x.BMP", "JPEG", exif=exif)
    assert Folder.open(animals)[0]["image"].shape == (9, 4, 3)


def test_folder_errors_name_cause_and_cure(animals: Path, tmp_path_factory):
    with pytest.raises(UserError, match="nowhere: no such folder; expected one with a sub-folder of images for each"):
        Folder.open(animals / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        Folder.open(animals / "cat" / "a.jpg")
    with pytest.raises(UserError, match="no class folders in it"):
        Folder.open(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match=r"classes \['ant', 'cat', 'dog'\] are not .*\['cat', 'dog'\]"):
        Folder.open(animals, classes=["cat", "dog"])
    (animals / "bee").mkdir()
    (animals / "emu" / "young").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images in class folder\(s\) \['bee', 'emu'\]: add some, or remove"):
        Folder.open(animals)


def test_a_folder_around_the_class_folders_is_refused_with_a_hint(animals: Path, tmp_path_factory):
    above = tmp_path_factory.mktemp("download")
    (above / "photos").symlink_to(animals)
    with pytest.raises(UserError, match=r"'photos' is its only class folder.*did you mean .*download0/photos\?"):
        Folder.open(above)
    save(above / "alone" / "cat" / "a.png")
    assert Folder.open(above / "alone").classes == ("cat",)  # enough to evaluate


def test_an_evaluation_folder_may_lack_classes(animals: Path):
    (animals / "bee").mkdir()
    folder = Folder.open(animals, classes=["ant", "bee", "cat", "dog", "emu"])
    assert folder.classes == ("ant", "bee", "cat", "dog", "emu")
    assert folder.labels.tolist() == [0, 2, 2, 3, 3]


def damage(animals: Path) -> None:
    (animals / "cat" / "a.jpg").write_bytes((animals / "cat" / "a.jpg").read_bytes()[:300])
    (animals / "dog" / "2.png").write_text("this is no image")
    (animals / "dog" / "old" / "1.gif").write_bytes(b"")


def test_corrupt_images_are_named_and_counted(animals: Path):
    damage(animals)
    with pytest.raises(CorruptImageError, match=r"cat/a\.jpg: not a readable image .*; 3 of 5 images are corrupt"):
        sources.in_memory(Folder.open(animals))


def test_readable_leaves_out_what_is_corrupt_and_says_what(animals: Path):
    whole = Folder.open(animals)
    assert sources.readable(whole) == (whole, [])
    damage(animals)
    source, errors = sources.readable(whole)
    assert len(errors) == 3
    assert [Path(error.split(":")[0]).name for error in errors] == ["a.jpg", "2.png", "1.gif"]
    assert source.classes == whole.classes
    arrays = sources.in_memory(source)
    assert arrays.fields["label"].tolist() == [0, 1]
    assert arrays.fields["image"][:, 0, 0, 0].tolist() == [160, 40]


def test_readable_refuses_a_source_with_nothing_left(animals: Path):
    damage(animals)
    whole = Folder.open(animals)
    with pytest.raises(UserError, match=r"none of the 2 images can be read, such as .*2\.png"):
        sources.readable(sources.Subset(whole, np.array([3, 4])))


def test_in_memory_keeps_order_and_shapes(animals: Path):
    save(animals / "dog" / "z.png", 7, size=(9, 4))
    folder = Folder.open(animals)
    with pytest.raises(UserError, match=r"different shapes, such as \[\(4, 9, 3\), \(6, 5, 3\)\]: give a size"):
        sources.in_memory(folder)
    arrays = sources.in_memory(sources.Mapped(folder, transforms.squeeze(4)))
    assert arrays.fields["image"].shape == (6, 4, 4, 3)
    for index in range(len(folder)):
        np.testing.assert_array_equal(arrays[index]["image"], transforms.squeeze(4)(folder[index])["image"])
        assert arrays[index]["label"] == folder[index]["label"]
    with pytest.raises(UserError, match="no images"):
        sources.in_memory(sources.Subset(folder, np.array([], int)))


def test_subset_takes_by_index():
    source = sources.Arrays({"image": np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), "label": LABELS}, ("a", "b"))
    subset = sources.Subset(source, np.array([2, 0]))
    assert (len(subset), subset.classes) == (2, ("a", "b"))
    assert [int(subset[i]["image"].item()) for i in range(2)] == [2, 0]


def test_arrays_hold_any_fields_of_one_length():
    source = sources.Arrays({"features": np.arange(6.0).reshape(3, 2), "label": np.array([0, 1, 1])}, ("a", "b"))
    assert (len(source), source[2]["features"].tolist(), source[2]["label"].dtype) == (3, [4, 5], np.int32)
    with pytest.raises(UserError, match=r"same length, one row per example, got {'image': 4, 'boxes': 3}"):
        sources.Arrays({"image": IMAGES, "boxes": np.zeros((3, 2, 4))}, ("a",))


def test_mapped_and_subset_wrap_each_other(animals: Path):
    folder = Folder.open(animals)
    mapped = sources.Mapped(sources.Subset(folder, np.array([4, 1])), transforms.squeeze(3))
    assert (len(mapped), mapped.classes, mapped[1]["image"].shape) == (2, folder.classes, (3, 3, 3))
    arrays = sources.in_memory(mapped)
    assert arrays.fields["label"].tolist() == sources.labels(mapped).tolist() == [2, 1]
    np.testing.assert_array_equal(arrays.fields["image"][0], transforms.squeeze(3)(folder[4])["image"])


def test_every_field_counts_for_what_is_small():
    source = sources.Mapped(
        sources.Arrays({"image": IMAGES, "label": LABELS}, ("a", "b")), lambda x: {**x, "map": np.zeros(100, np.uint8)}
    )
    size = 4 * (6 * 5 * 3 + 4 + 100)
    assert sources.in_memory_if_small(source, size - 1) is source
    arrays = sources.in_memory_if_small(source, size)
    assert arrays.fields["map"].shape == (4, 100)
    assert sources.in_memory_if_small(arrays, 0) is arrays


def test_lenient_marks_what_cannot_be_read_and_says_why(animals: Path):
    folder = sources.Mapped(Folder.open(animals), transforms.squeeze(4))
    blank = {"image": np.zeros((4, 4, 3), np.uint8), "label": -1}
    assert all(sources.Lenient(folder, blank)[i]["readable"] for i in range(5))
    damage(animals)
    source = sources.Lenient(folder, blank)
    examples = sources.stack([source[i] for i in range(5)])
    assert examples["readable"].tolist() == [True, False, True, False, False]
    assert examples["label"].tolist() == [0, -1, 1, -1, -1]
    assert [Path(e.split(":")[0]).name for e in source.errors(examples["readable"])] == ["a.jpg", "2.png", "1.gif"]
    assert source.errors(np.zeros(0, bool)) == []
    bad = sources.Lenient(sources.Subset(folder, np.array([1, 3])), blank)
    with pytest.raises(UserError, match=r"none of the 2 images can be read, such as .*a\.jpg"):
        bad.errors(np.array([False, False]))


def test_relabelled_puts_labels_in_other_places():
    arrays = sources.Arrays({"image": IMAGES, "label": LABELS}, ("a", "b"))
    source = sources.Relabelled(arrays, np.array([7, 3]), tuple("abcdefgh"))
    assert [int(source[i]["label"]) for i in range(len(source))] == [7, 3, 3, 7]
    assert (source[0]["label"].dtype, len(source.classes)) == (np.int32, 8)
    assert sources.labels(source).tolist() == [7, 3, 3, 7]
