"""Every notebook runs from top to bottom, with the settings below made small, and shows its pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMALL = {"EPOCHS = 10": "EPOCHS = 1"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        assert not cell.get("outputs"), f"{path.name} was saved with outputs: clear them"
        for usual, small in SMALL.items():
            cell.source = cell.source.replace(usual, small)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", ()) if output.output_type != "stream"]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
