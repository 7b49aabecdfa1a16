"""Predicted classes: those of Keras for its weights, every kind of image file, and files that are no images."""

import io
import json
from pathlib import Path

import numpy as np
import predict
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cnnjax import settings
from cnnjax.types import UserError

TAG, FILE = "mobilenet_v1_0.75_224.keras", "mobilenet_7_5_224_tf.h5"


def run(folder: Path, *images: object, **fields: object) -> tuple[dict, dict]:
    """Runs predict.py; returns the summary, and the content of predictions.json."""
    fields = {"smoke": True, **fields}
    summary = predict.main(settings.change(predict.Config(), images=tuple(map(str, images)), run_dir=folder, **fields))
    assert json.loads((folder / "summary.json").read_text()) == summary
    return summary, json.loads((folder / "predictions.json").read_text())


def test_the_photos_of_the_chapter_are_what_keras_says(shared, tmp_path, monkeypatch, capsys):
    import keras
    from keras.src.applications import imagenet_utils

    weights = shared / "weights" / FILE
    peer = keras.applications.MobileNet((224, 224, 3), alpha=0.75, weights=None)
    peer.load_weights(weights)
    paths = load_sample_images().filenames
    photos = np.stack([keras.utils.load_img(p, target_size=(224, 224), interpolation="bilinear") for p in paths])
    index = json.loads((shared / "data" / "imagenet_class_index.json").read_text())
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", index)  # Keras would download it
    probabilities = peer.predict(keras.applications.mobilenet.preprocess_input(photos.astype(np.float32)), verbose=0)
    expected = imagenet_utils.decode_predictions(probabilities)

    summary, result = run(tmp_path, weights=TAG, file=weights, resize="squeeze", smoke=False)
    assert summary == {"images": 2, "unreadable": 0}
    assert [image["file"] for image in result["images"]] == paths
    for image, theirs in zip(result["images"], expected, strict=True):
        ours = image["predictions"]
        assert [(p["wnid"], p["name"]) for p in ours] == [row[:2] for row in theirs]
        np.testing.assert_allclose([p["score"] for p in ours], [row[2] for row in theirs], atol=1e-5)
    assert [p["name"] for p in result["images"][0]["predictions"]] == ["beacon", "palace", "bell_cote", "stupa", "dome"]
    printed = capsys.readouterr()
    assert "n02814860" in printed.out
    assert "RANDOM" not in printed.out + printed.err


def test_smoke_says_that_its_weights_are_random(tmp_path, capsys):
    summary, result = run(tmp_path, top=2)
    assert summary == {"images": 2, "unreadable": 0}
    assert result["weights"] == "random"
    assert [len(image["predictions"]) for image in result["images"]] == [2, 2]
    with Image.open(tmp_path / "predictions.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 100
    printed = capsys.readouterr()
    assert "RANDOM WEIGHTS" in printed.out
    assert "RANDOM WEIGHTS" in printed.err
    assert json.loads((tmp_path / "config.json").read_text())["weights"] == settings.SMOKE


def test_every_frame_of_an_animation_is_predicted_and_shown(tmp_path):
    pixels = [Image.fromarray(np.asarray(Image.open(path).resize((80, 60)))) for path in load_sample_images().filenames]
    pixels[0].save(tmp_path / "film.gif", save_all=True, append_images=[pixels[1], pixels[0]], duration=50)
    pixels[1].save(tmp_path / "photo.png")
    summary, result = run(tmp_path / "run", tmp_path / "film.gif", tmp_path / "photo.png", frames=True, top=1)
    assert summary == {"images": 4, "unreadable": 0}
    assert [image.get("frame") for image in result["images"]] == [0, 1, 2, None]
    first, second, third, photo = (image["predictions"][0]["score"] for image in result["images"])
    assert first == pytest.approx(third, rel=1e-2)  # the colors of a GIF are few
    assert second == pytest.approx(photo, rel=1e-2)
    assert first != pytest.approx(second, rel=1e-2)
    with Image.open(tmp_path / "run" / "film.gif") as film:
        assert film.n_frames == 3
    (tmp_path / "other").mkdir()
    pixels[1].save(tmp_path / "other" / "film.gif", save_all=True, append_images=[pixels[0]], duration=50)
    run(tmp_path / "both", tmp_path / "film.gif", tmp_path / "other", frames=True)
    counts = []
    for name in ("film.gif", "film-2.gif"):
        with Image.open(tmp_path / "both" / name) as film:
            counts.append(film.n_frames)
    assert counts == [3, 2]
    _, result = run(tmp_path / "first", tmp_path / "film.gif", top=1)
    assert [image["predictions"][0]["score"] for image in result["images"]] == [pytest.approx(first, rel=1e-5)]
    assert not (tmp_path / "first" / "film.gif").exists()


@pytest.fixture
def album(tmp_path) -> Path:
    """Folder of one image as several kinds of files, other images, and files that are no images."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    pixels = np.asarray(Image.open(load_sample_images().filenames[1]).resize((160, 120)))
    color, gray = Image.fromarray(pixels), Image.fromarray(pixels).convert("L")
    color.save(folder / "a_rgb.png")
    Image.fromarray(np.dstack([pixels, np.full((120, 160), 255, np.uint8)])).save(folder / "b_rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    color.transpose(Image.Transpose.ROTATE_90).save(folder / "c_turned.png", exif=exif)
    gray.save(folder / "d_gray.png")
    deep = np.asarray(gray).astype(np.uint16) << 8
    Image.fromarray(deep).save(folder / "e_16bit.png")
    color.quantize(64).save(folder / "f_palette.gif")
    color.convert("CMYK").save(folder / "g_cmyk.jpg")
    buffer = io.BytesIO()
    color.save(buffer, "JPEG")
    (folder / "h_cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "i_text.jpg").write_text("no image")
    (folder / "j_empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    gray.save(folder / "deep" / "k.png")
    return folder


def test_every_kind_of_file_is_read_and_what_is_none_is_named(album, tmp_path, capsys):
    summary, result = run(tmp_path / "run", album, batch_size=8)
    assert summary == {"images": 8, "unreadable": 3}
    predictions = {Path(image["file"]).name: image["predictions"] for image in result["images"]}
    assert predictions.keys() == {
        *("a_rgb.png", "b_rgba.png", "c_turned.png", "d_gray.png"),
        *("e_16bit.png", "f_palette.gif", "g_cmyk.jpg", "k.png"),
    }
    assert predictions["b_rgba.png"] == predictions["c_turned.png"] == predictions["a_rgb.png"]
    assert predictions["e_16bit.png"] == predictions["d_gray.png"] == predictions["k.png"] != predictions["a_rgb.png"]
    printed = capsys.readouterr().err
    assert f"{album}: left out: 1 .txt\n" in printed
    for error, name in zip(result["unreadable"], ("h_cut.jpg", "i_text.jpg", "j_empty.png"), strict=True):
        assert error.startswith(f"{album / name}: not a readable image (")
        assert f"left out: {error}\n" in printed


def test_the_batch_size_changes_nothing(album, tmp_path):
    images = sorted(album.glob("*_*.png"))[:5]
    results = [run(tmp_path / str(size), *images, batch_size=size)[1]["images"] for size in (8, 64)]
    few, many = ([[p["score"] for p in image["predictions"]] for image in result] for result in results)
    np.testing.assert_allclose(few, many, rtol=1e-5)


def test_names_stand_for_files_folders_and_patterns(album):
    found = predict.find_images([f"{album}/[de]_*", str(album / "deep"), str(album / "d_gray.png")])
    assert [path.name for path in found] == ["d_gray.png", "e_16bit.png", "k.png"]
    assert len(predict.find_images([str(album)])) == 11
    assert [path.name for path in predict.find_images([])] == ["china.jpg", "flower.jpg"]
    (album / "photo [1].png").write_bytes((album / "d_gray.png").read_bytes())
    assert [path.name for path in predict.find_images([f"{album}/photo [1].png"])] == ["photo [1].png"]
    (album / "phone").mkdir()
    (album / "phone" / "IMG_1.HEIC").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"phone: no images there \(left out: 1 \.heic \(pip install pillow-heif\)\); give"
    ):
        predict.find_images([str(album / "phone")])
    for name in ("gone.jpg", f"{album}/*.bmp"):
        with pytest.raises(UserError, match="no images there; give files, folders with images, or a quoted pattern"):
            predict.find_images([name])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top": 0}, "--top must be above 0, got 0"),
        ({"top": 1001}, "--top must be at most 1000, the classes of"),
        ({"batch_size": 12}, "batch size 12 does not divide over 8 devices"),
        ({"weights": "resnet50.kears", "smoke": False}, "did you mean resnet50.keras"),
        ({"weights": "resnet50.keras", "file": Path("gone.h5"), "smoke": False}, "gone.h5"),
    ],
)
def test_what_cannot_be_is_one_error(fields, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        run(tmp_path / "run", **fields)
    assert "\n" not in str(error.value)


def test_only_unreadable_images_are_an_error(album, tmp_path):
    with pytest.raises(UserError, match=r"none of the 2 images can be read, such as .*i_text\.jpg: not a readable"):
        run(tmp_path / "run", album / "i_text.jpg", album / "j_empty.png")
