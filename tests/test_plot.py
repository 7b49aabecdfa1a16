"""Pictures: their pixels where a wrong plot would show, and that saving is all or nothing."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cnnjax import plot

CLASSES = ["cat", "dog", "owl"]


def _shown(axis):
    """The array that an axis shows."""
    (picture,) = axis.images
    return np.asarray(picture.get_array())


def _titles(figure):
    return [axis.get_title() for axis in figure.axes]


def _pixel(path, axis, x, y):
    """The RGB colour in a saved PNG at data coordinates (x, y) of an axis."""
    with Image.open(path) as image:
        column, row = axis.transData.transform((x, y))
        return image.convert("RGB").getpixel((int(column), int(image.height - row)))


def test_image_grid_shows_each_image_where_it_belongs(tmp_path):
    red, half = np.zeros((4, 4, 3), np.uint8), np.full((6, 6, 1), 0.5, np.float32)
    red[..., 0] = 255
    black_left = np.ones((4, 4, 1), np.float32)
    black_left[:, :2] = 0
    figure = plot.image_grid([red, half, black_left], ["red", "grey", "edge"], columns=2)
    path = plot.save(figure, tmp_path / "grid.png")
    assert _titles(figure) == ["red", "grey", "edge"]
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
    probabilities = np.array([[0.6, 0.4, 0], [0.1, 0.9, 0], [0.05, 0, 0.95], [0.3, 0, 0.7]])
    images = np.arange(4).reshape(4, 1, 1, 1) / 4 * np.ones((4, 5, 5, 1))
    predicted, true = probabilities.argmax(-1), np.array([1, 0, 2, 1])
    figure = plot.mistakes(images, true, predicted, probabilities, CLASSES, most=2)
    assert _titles(figure) == ["dog 90%\nis cat", "owl 70%\nis dog"]
    assert [_shown(axis)[0, 0] for axis in figure.axes] == [0.25, 0.75]
    none = plot.mistakes(images, predicted, predicted, probabilities, CLASSES)
    assert [text.get_text() for text in none.texts] == ["no mistakes"]


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


def test_many_names_share_the_room_that_there_is():
    figure = plot.bubbles({str(i): (1.0 + i, 5.0, 1.0) for i in range(50)}, "x", "y")
    places = [text.xyann[1] for text in figure.axes[0].texts]
    np.testing.assert_allclose(np.diff(places), 0.02)
    assert 0 <= places[0] <= places[-1] <= 1


def test_filters_are_on_one_scale_with_zero_grey():
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
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(plot.FigureCanvasAgg, "print_figure", half)
    with pytest.raises(OSError, match="No space"):
        plot.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_import_leaves_pyplot_alone():
    code = "import sys, cnnjax.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
