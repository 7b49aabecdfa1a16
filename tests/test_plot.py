"""Figures: pixels that a wrong plot would change, the user's text in them, and saving as all or nothing."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cnnjax import plot
from cnnjax.plot import figure as figures
from cnnjax.types import Picture

CLASSES = ["cat", "dog", "owl"]
ODD = "_a$b_{c}$\\frac{x}\\$[b]"  # mathematics, an underscore that hides a label, markup
FONTS = ("DejaVu Sans", "STIXGeneral")


def _shown(axis):
    """Array that an axis shows."""
    (picture,) = axis.images
    return np.asarray(picture.get_array())


def _titles(figure):
    return [axis.get_title() for axis in figure.axes]


def _pixel(path, axis, x, y):
    """RGB color in a saved PNG at data coordinates (x, y) of an axis."""
    with Image.open(path) as image:
        column, row = axis.transData.transform((x, y))
        return image.convert("RGB").getpixel((int(column), int(image.height - row)))


def test_image_grid_shows_each_image_where_it_belongs(tmp_path):
    red, half = np.zeros((4, 4, 3), np.uint8), np.full((6, 6, 1), 0.5, np.float32)
    red[..., 0] = 255
    black_left = np.ones((4, 4, 1), np.float32)
    black_left[:, :2] = 0
    figure = plot.image_grid([red, half, black_left], ["red", "gray", "edge"], columns=2)
    path = plot.save(figure, tmp_path / "grid.png")
    assert _titles(figure) == ["red", "gray", "edge"]
    assert _pixel(path, figure.axes[0], 1.5, 1.5) == (255, 0, 0)
    assert all(abs(value - 127) <= 1 for value in _pixel(path, figure.axes[1], 2.5, 2.5))
    assert _pixel(path, figure.axes[2], 0.5, 1.5) == (0, 0, 0)
    assert _pixel(path, figure.axes[2], 2.5, 1.5) == (255, 255, 255)
    assert figure.axes[2].get_position().y1 < figure.axes[0].get_position().y0


@pytest.mark.parametrize(("images", "titles"), [([], None), (np.zeros((2, 3, 3, 1)), ["one"])])
def test_image_grid_refuses_what_does_not_fit(images, titles):
    with pytest.raises(ValueError, match="a title for each"):
        plot.image_grid(images, titles)


def test_curves_have_one_panel_per_quantity_with_the_splits_in_it():
    records = [
        {"step": 0, "train/loss": 3.0, "train/accuracy": 0.1, "epoch": 0},
        {"step": 20, "train/loss": 1.0, "train/accuracy": 0.8},
        {"step": 10, "train/loss": 2.0, "train/accuracy": 0.5},
        {"step": 20, "valid/loss": 1.5, "valid/accuracy": 0.7},
    ]
    figure = plot.curves(records)
    assert _titles(figure) == ["loss", "accuracy"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"train": [[0, 3], [10, 2], [20, 1]], "valid": [[20, 1.5]]}
    with pytest.raises(ValueError, match="train/loss"):
        plot.curves([{"step": 1, "epoch": 2}])


def test_curves_of_a_family_share_a_panel_for_each_split():
    records = [
        {"step": 1, "train/loss": 3.0},
        {"step": 1, "valid/iou/cat": 0.1, "valid/iou": 0.2, "valid/iou/train": 0.3, "train/loss": 2.0},
        {"step": 2, "valid/iou/cat": 0.4, "test/iou/cat": 0.5, "valid/ap/a/b": 0.6},
    ]
    figure = plot.curves(records)
    assert _titles(figure) == ["loss", "iou", "iou, valid", "iou, test", "ap, valid"]
    drawn = [{line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in figure.axes[1:]]
    assert drawn == [
        {"valid": [[1, 0.2]]},
        {"cat": [[1, 0.1], [2, 0.4]], "train": [[1, 0.3]]},
        {"cat": [[2, 0.5]]},
        {"a/b": [[2, 0.6]]},
    ]
    assert len({line.get_color() for line in figure.axes[2].lines}) == 2  # also for a class called "train"


@pytest.mark.parametrize(("count", "title"), [(10, "iou, valid"), (11, "iou, valid: first 10 of 11")])
def test_curves_say_how_many_of_a_family_they_leave_out(count, title):
    figure = plot.curves([{"step": 1, **{f"valid/iou/{i}": 0.5 for i in range(count)}}])
    assert _titles(figure) == [title]
    assert [line.get_label() for line in figure.axes[0].lines] == [str(i) for i in range(10)]


def test_confusion_writes_counts_on_the_share_of_the_row(tmp_path):
    figure = plot.confusion(np.array([[8, 2, 0], [0, 0, 0], [5, 0, 15]]), CLASSES)
    path = plot.save(figure, tmp_path / "confusion.png")
    axis = figure.axes[0]
    np.testing.assert_allclose(_shown(axis), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0, 0): "8",
        (1, 0): "2",
        (0, 2): "5",
        (2, 2): "15",
    }
    dark, light = _pixel(path, axis, -0.3, -0.3), _pixel(path, axis, 0.7, -0.3)
    assert sum(dark) < sum(light) - 100
    assert [label.get_text() for label in axis.get_yticklabels()] == CLASSES
    with pytest.raises(ValueError, match=r"\[3, 3\] for 3 classes, got \[2, 2\]"):
        plot.confusion(np.eye(2), CLASSES)


def test_confusion_of_many_classes_has_no_numbers():
    assert not plot.confusion(np.eye(40), [str(i) for i in range(40)]).axes[0].texts


def test_mistakes_are_ordered_by_their_confidence():
    true, predicted, confidence = np.array([1, 0, 2, 1]), np.array([0, 1, 2, 2]), np.array([0.6, 0.9, 0.95, 0.7])
    images = np.arange(4).reshape(4, 1, 1, 1) / 4 * np.ones((4, 5, 5, 1))
    figure = plot.mistakes(images, true, predicted, confidence, ["cat", "dog", "snowy\nowl"], most=2)
    assert _titles(figure) == ["dog 90%\nis cat", "snowy\\nowl 70%\nis dog"]
    assert [_shown(axis)[0, 0] for axis in figure.axes] == [0.25, 0.75]
    none = plot.mistakes(images, predicted, predicted, confidence, CLASSES)
    assert [text.get_text() for text in none.texts] == ["no mistakes"]


def test_boxes_are_drawn_around_their_pixels(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:16, 6:21] = 255
    figure = plot.pictures([Picture(image, "a dog", np.array([[6, 4, 21, 16]]), ("dog",), (1,))], columns=1)
    (box,) = figure.axes[0].patches
    # In the axes the center of pixel (0, 0) is at (0, 0): the white ones reach from 5.5 to 20.5 and from 3.5 to 15.5.
    np.testing.assert_array_equal(box.get_bbox().extents, [5.5, 3.5, 20.5, 15.5])
    assert [text.get_text() for text in figure.axes[0].texts] == ["dog"]
    assert _titles(figure) == ["a dog"]
    with Image.open(plot.save(figure, tmp_path / "x.png")) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (abs(pixels - [255, 127, 14]).sum(-1) < 20).sum() > 500  # its orange


def test_equal_numbers_have_equal_colors_in_every_picture():
    image, boxes = np.zeros((9, 9, 1)), np.array([[0, 0, 4, 4], [2, 2, 8, 8]])
    colors = [(3, 1), (1, 3), ()]
    figure = plot.pictures([Picture(image, "", boxes, (), each) for each in colors])
    found = [[patch.get_edgecolor() for patch in axis.patches] for axis in figure.axes]
    assert found[0] == found[1][::-1]
    assert len({*found[0], found[2][0]}) == 3
    assert found[2][0] == found[2][1]


def test_names_of_many_boxes_are_left_out():
    counts = [0, 20, 21]
    pictures = [
        Picture(np.zeros((9, 9, 1)), "", np.array([[0, 0, 9, 9]] * n).reshape(n, 4), ("cat",) * n) for n in counts
    ]
    figure = plot.pictures(pictures)
    assert [len(axis.patches) for axis in figure.axes] == counts
    assert [len(axis.texts) for axis in figure.axes] == [0, 20, 0]


def test_pictures_refuse_what_does_not_fit():
    image, boxes = np.zeros((9, 9, 1)), np.zeros((2, 4))
    with pytest.raises(ValueError, match="at least one picture"):
        plot.pictures([])
    with pytest.raises(ValueError, match="2 names and colors for 2 boxes, got 1 and 2"):
        plot.pictures([Picture(image, "", boxes, ("cat",), (0, 1))])
    with pytest.raises(ValueError, match="2 names and colors for 2 boxes, got 0 and 3"):
        plot.pictures([Picture(image, "", boxes, (), (0, 1, 2))])


def test_bubbles_have_areas_in_proportion_and_names_that_do_not_touch(tmp_path):
    points = {"one": (1.0, 70.0, 4.0), "two": (10.0, 70.1, 2.0), "three": (100.0, 60.0, 0.0)}
    figure = plot.bubbles(points, "cost", "accuracy")
    path = plot.save(figure, tmp_path / "bubbles.png")
    axis = figure.axes[0]
    (circles,) = axis.collections
    np.testing.assert_array_equal(circles.get_offsets(), [point[:2] for point in points.values()])
    np.testing.assert_allclose(circles.get_sizes() / circles.get_sizes()[0], [1, 0.5, 0])
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("cost", "accuracy", "log")
    assert _pixel(path, axis, 1, 70) != (255, 255, 255)
    assert {text.get_text(): text.xy for text in axis.texts} == {name: point[:2] for name, point in points.items()}
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines to the circles
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])
    assert all(figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) for box in boxes)
    with pytest.raises(ValueError, match="at least one point"):
        plot.bubbles({}, "cost", "accuracy")


def test_bars_stand_where_their_group_and_series_are():
    figure = plot.bars({"a": {"x": 1.0, "y": 2.0}, "b": {"y": 3.0}}, "images/s")
    (axis,) = figure.axes
    x, y = axis.containers
    assert [bar.get_height() for bar in x] == [1.0]
    assert [bar.get_height() for bar in y] == [2.0, 3.0]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in y] == [0, 1]
    assert x[0].get_x() < y[0].get_x()
    with pytest.raises(ValueError, match="at least one value"):
        plot.bars({}, "images/s")


def test_many_names_share_the_room_that_there_is():
    figure = plot.bubbles({str(i): (1.0 + i, 5.0, 1.0) for i in range(50)}, "x", "y")
    places = [text.xyann[1] for text in figure.axes[0].texts]
    np.testing.assert_allclose(np.diff(places), 0.02)
    assert 0 <= places[0] <= places[-1] <= 1


def test_filters_are_on_one_scale_with_zero_gray():
    kernel = np.zeros((2, 2, 3, 4), np.float32)
    kernel[0, 1, 2, 3], kernel[1, 0, 0, 1] = 4, -2
    shown = np.stack([_shown(axis) for axis in plot.filters(kernel).axes], axis=-1)
    np.testing.assert_allclose(shown, 0.5 + kernel / 8)
    with pytest.raises(ValueError, match=r"got \[3, 3, 16, 32\]"):
        plot.filters(np.zeros((3, 3, 16, 32)))


def test_feature_maps_each_have_their_own_range():
    maps = np.stack([[[1.0, 2.0, 3.0]], [[-10.0, 0.0, 30.0]], [[7.0, 7.0, 7.0]]], axis=-1)
    figure = plot.feature_maps(maps, CLASSES)
    shown = [_shown(axis)[0].tolist() for axis in figure.axes]
    np.testing.assert_allclose(shown, [[0, 0.5, 1], [0, 0.25, 1], [0, 0, 0]])
    assert _titles(figure) == CLASSES


def _figures_with(text):
    """Figures of each kind with ``text`` in every place of a user's text, each with the number of places."""
    image, series = np.zeros((9, 9, 3)), {text: (np.arange(3), np.arange(3))}
    yield plot.pictures([Picture(image, text, np.array([[1, 1, 5, 5]]), (text,), (0,))], suptitle=text), 3
    yield plot.image_grid([image], [text], suptitle=text), 2
    yield plot.feature_maps(image, [text] * 3, suptitle=text), 4
    yield plot.curves([{"step": 1, f"valid/{text}": 1, f"valid/iou/{text}": 1, f"{text}/iou": 1}], text), 4
    yield plot.confusion(np.eye(1), [text], text), 3
    yield plot.bars({text: {text: 1.0}, "b": {"x": 2.0}, "c": {"x": 3.0}}, text, text), 4
    yield plot.bubbles({text: (1, 1, 1)}, text, text, text), 4
    yield plot.lines(series, text, text, suptitle=text), 4


@pytest.mark.parametrize("char", ["汉", "Ⓑ", "a"])
def test_the_users_text_is_shown_as_it_is(tmp_path, monkeypatch, char):
    # STIX, which comes with matplotlib, is the only one of these fonts with a letter in a circle.
    fonts = [font for font in font_manager.fontManager.ttflist if font.name in FONTS]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    figures._fonts.cache_clear()
    name, drawn = ODD + char, ODD + {"汉": r"\u6c49"}.get(char, char)
    for figure, count in _figures_with(name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as one for each missing glyph
            plot.save(figure, tmp_path / "a.png")
            figure.savefig(tmp_path / "b.png", bbox_inches="tight")  # as notebooks do
        texts = [text for text in figure.findobj(Text) if text.get_text() == drawn and text.get_visible()]
        assert len(texts) == count
        assert not any(text.get_parse_math() for text in texts)
    figures._fonts.cache_clear()


def test_names_stay_in_one_line_and_bytes_that_are_no_text_are_drawn(tmp_path):
    name = "a\r\nb\nc\udcff\x1b"
    for figure, _ in _figures_with(name):
        plot.save(figure, tmp_path / "a.png")
        texts = {text.get_text() for text in figure.findobj(Text) if text.get_text().startswith("a")}
        assert texts <= {"a\nb\nc\\xff\\x1b", "a\\r\\nb\\nc\\xff\\x1b"}
    picture = Picture(np.zeros((9, 9, 3)), name, np.array([[1, 1, 5, 5]]), (name,))
    axis = plot.pictures([picture]).axes[0]
    assert (axis.get_title(), axis.texts[0].get_text()) == ("a\nb\nc\\xff\\x1b", "a\\r\\nb\\nc\\xff\\x1b")


def test_save_replaces_the_old_file_or_leaves_it(tmp_path):
    path = tmp_path / "new" / "a.png"
    assert plot.save(plot.image_grid(np.zeros((1, 3, 3, 1))), path) == path
    old = path.read_bytes()
    assert old.startswith(b"\x89PNG")

    class Broken(Figure):
        def draw(self, renderer):
            renderer.draw_nothing()

    with pytest.raises(AttributeError):
        plot.save(Broken(), path)
    assert path.read_bytes() == old
    plot.save(plot.image_grid(np.ones((2, 3, 3, 1))), path)
    assert path.read_bytes() != old
    assert list(path.parent.iterdir()) == [path]


def test_save_leaves_no_half_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half(self, filename, **_):
        filename.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(plot.FigureCanvasAgg, "print_figure", half)
    with pytest.raises(OSError, match="No space"):
        plot.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_import_leaves_pyplot_alone():
    code = "import sys, cnnjax.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
