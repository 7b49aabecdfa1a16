"""Every notebook runs from top to bottom, with the settings below made small, and shows its figures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SHORT = ("map",)  # the others take a quarter of a minute or more
NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in SHORT else [pytest.mark.exhaustive])
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
]
PICTURES = {
    **{"anchors": 5, "classify": 6, "detect": 5, "feature_maps": 6, "flowers": 8, "localize": 6, "map": 3},
    "segmentation": 3,
}
SMOKE = {"SMOKE = False": "SMOKE = True"}


@pytest.fixture
def small(photos, rectangles):
    """Notebook → text in it → its replacement for a short run."""
    return {
        "classify": {"EPOCHS = 10": "EPOCHS = 1"},
        "segmentation": {"STEPS = 150": "STEPS = 1"},
        "flowers": {'DATASET = "tf_flowers"': f"DATASET = {str(photos)!r}", **SMOKE},
        "detect": {'DATASET = "BCCD_Dataset/BCCD"': f"DATASET = {str(rectangles)!r}", **SMOKE},
        "localize": {'DATASET = "~/animals"': f"DATASET = {str(rectangles)!r}", **SMOKE},
    }


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_runs(path, small, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        assert not cell.get("outputs"), f"{path.name} was saved with outputs: clear them"
    for usual, here in small.get(path.stem, {}).items():
        assert sum(usual in cell.source for cell in book.cells) == 1, f"{path.name} has no {usual!r}, or two"
        for cell in book.cells:
            cell.source = cell.source.replace(usual, here)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", ()) if output.output_type != "stream"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == PICTURES[path.stem]
