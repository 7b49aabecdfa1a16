"""Images with masks: arrangements of folders, names and values of classes, what does not fit; moved by transforms."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import pipeline, segmented, transforms
from cnnjax.data.formats import mask_folders
from cnnjax.types import UserError


def save(root, image_folder, mask_folder, names, after="", mode="L", values=(0, 1, 2)):
    """Images of 8×6 pixels, left half of value 0, and their masks with the values in columns."""
    for folder in (image_folder, mask_folder):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6), (10, 20, 30)).save(root / image_folder / f"{name}.jpg")
        labels = np.zeros((6, 8), np.uint8)
        labels[:, : len(values)] = values
        mask = Image.fromarray(labels).convert("L")
        if mode == "P":
            mask = Image.fromarray(labels, "P")
            mask.putpalette([v for k in range(256) for v in (k, 255 - k, 0)])
        mask.convert(mode).save(root / mask_folder / f"{name}{after}.png")


NAMES = [str(i) for i in range(20)]


@pytest.mark.parametrize(
    ("parts", "after", "expected"),
    [
        ({"train": ("train", "trainannot"), "val": ("val", "valannot")}, "", {"train", "valid"}),
        ({"": ("images", "masks")}, "_mask", {"train", "valid", "test"}),
        ({"": ("photos", "photos_labels")}, "", {"train", "valid", "test"}),
        ({"train": ("images/train", "labels/train"), "val": ("images/val", "labels/val")}, "", {"train", "valid"}),
        (
            {"train": ("train/images", "train/masks"), "test": ("test/images", "test/masks")},
            "_L",
            {"train", "valid", "test"},
        ),
    ],
)
def test_arrangements_of_folders(tmp_path, parts, after, expected):
    for images, masks in parts.values():
        save(tmp_path, images, masks, NAMES, after)
    found = segmented.load(tmp_path)
    assert found.given.keys() == expected
    example = found.train[0]
    assert example["image"].shape == (6, 8, 3)
    np.testing.assert_array_equal(example["segmentation"][0], [0, 1, 2, 0, 0, 0, 0, 0])


def test_pascal_voc_has_lists_palettes_and_names(tmp_path):
    save(tmp_path, "JPEGImages", "SegmentationClass", NAMES, mode="P", values=(0, 20, 255))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(NAMES[:12]))
    (lists / "val.txt").write_text("\n".join(NAMES[12:]))
    found = segmented.load(tmp_path)
    assert (len(found.train), len(found.valid), found.test) == (12, 8, None)
    assert found.train.classes[20] == "tvmonitor"
    np.testing.assert_array_equal(found.train[0]["segmentation"][0, :3], [0, 20, 255])
    (lists / "train.txt").write_text("absent")
    with pytest.raises(UserError, match=r"train.txt: 1 of its images or their masks are not there, such as absent"):
        segmented.load(tmp_path)


def test_names_of_classes_and_values_to_ignore(tmp_path, capsys):
    save(tmp_path, "images", "masks", NAMES, values=(0, 1, 3))
    found = segmented.load(tmp_path, ignored=(3,))
    assert found.train.classes == ("0", "1")
    assert "no names of classes" in capsys.readouterr().out
    np.testing.assert_array_equal(found.train[0]["segmentation"][0, :3], [0, 1, 255])
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert segmented.load(tmp_path).train.classes == ("sky", "road")
    assert segmented.load(tmp_path, ["a", "b", "c", "d"]).train.classes == ("a", "b", "c", "d")


def problem(source):
    with pytest.raises(UserError) as caught:
        source[0]
    message = str(caught.value)
    assert "\n" not in message
    assert list(filter(None, source.problems(np.array([0]), None))) == [message]
    return message


def test_masks_that_do_not_fit_are_one_line_with_the_file(tmp_path):
    save(tmp_path, "images", "masks", NAMES)
    source = segmented.Segmented(tuple(mask_folders.find(tmp_path)["all"]), ("a", "b"))
    assert problem(source).endswith(
        "0.png: it has the values [2], but there are 2 classes: --ignore 2 leaves such pixels out"
    )
    Image.new("L", (6, 6)).save(tmp_path / "masks" / "0.png")
    assert problem(source).endswith("0.png: it has 6×6 pixels, its image 8×6: make them equal")
    Image.new("RGB", (8, 6)).save(tmp_path / "masks" / "0.png")
    assert "0.png: its pixels are colors (RGB), not numbers of classes: save it with a palette" in problem(source)
    (tmp_path / "masks" / "0.png").write_bytes(b"nothing")
    assert "0.png: not a readable mask (cannot identify image file" in problem(source)
    fractions = np.full((6, 8), 0.5, np.float32)
    Image.fromarray(fractions).save(tmp_path / "fractions.tif")
    with pytest.raises(UserError, match=r"its pixels are fractions \(F\), not numbers of classes"):
        mask_folders.read_mask(tmp_path / "fractions.tif")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"classes.txt has no names of classes, one in a line"):
        segmented.load(tmp_path)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([], "no images beside masks"),
        ([("images", "elsewhere")], "no images beside masks"),
        ([("val", "valannot")], "it has the splits valid, but no train: add it, or give a folder inside"),
        ([("images/train", "masks/train"), ("images/val", "elsewhere")], r"no masks for a split .*masks/val: add them"),
    ],
)
def test_folders_that_are_not_understood(tmp_path, folders, expected):
    for images, masks in folders:
        save(tmp_path, images, masks, NAMES)
    with pytest.raises(UserError, match=expected):
        segmented.load(tmp_path)


def test_a_mask_is_of_its_photo_as_it_is_shown_or_as_it_is_stored(tmp_path):
    save(tmp_path, "images", "masks", NAMES)
    stored = np.zeros((6, 8, 3), np.uint8)
    stored[0] = 200  # the first row; shown, turned by 90 degrees, it is the last column
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "images" / "0.jpg", exif=exif, quality=100)
    source = segmented.Segmented(tuple(mask_folders.find(tmp_path)["all"]), ("a", "b", "c"))
    assert source.sizes(np.array([0])) == [(8, 6)]
    assert source[0]["image"].shape == (6, 8, 3)  # the mask is 6×8
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "masks" / "0.png")
    shown = source[0]["image"]
    assert shown.shape == (8, 6, 3)
    assert shown[:, -1].min() > 120 > shown[:, 0].max()
    assert source.problems(np.array([0]), None) == [""]


def test_classes_are_counted_without_reading_a_photo(tmp_path):
    save(tmp_path, "images", "masks", NAMES, values=(0, 1, 255))
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    source = segmented.Segmented(tuple(mask_folders.find(tmp_path)["all"]), ("a", "b", "c"))
    pixels, present = segmented.class_pixels(source)
    np.testing.assert_array_equal(pixels, [20 * 36, 20 * 6, 0])
    np.testing.assert_array_equal(present, [20 * 42, 20 * 42, 0])


def test_an_image_without_a_mask(tmp_path):
    save(tmp_path, "images", "masks", NAMES)
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 images have no mask in .*masks, such as 3.jpg: give it the same name"):
        segmented.load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        segmented.load(tmp_path / "none")


def test_masks_move_with_their_images(tmp_path):
    save(tmp_path, "images", "masks", NAMES)
    source = segmented.load(tmp_path).train
    load = pipeline.loader(source, transforms.flip_left_right())
    batch = next(pipeline.train_batches(source, 4, 0, load=load, threads=0))
    assert batch["segmentation"].shape == (4, 6, 8)
    np.testing.assert_array_equal(batch["segmentation"][0, 0], [0, 0, 0, 0, 0, 2, 1, 0])


def test_camvid(shared):
    found = segmented.load(shared / "data" / "camvid", ignored=(11,))
    assert [len(source) for source in found.given.values()] == [367, 101, 233]
    assert len(found.train.classes) == 11
    example = found.test[0]
    assert example["image"].shape == (360, 480, 3)
    assert set(np.unique(example["segmentation"])) <= {*range(11), 255}
