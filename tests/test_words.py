"""Words of docstrings: each begins with a noun or a verb, so that its first word tells the reader something."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("cnnjax", "experiments", "tests")
QUESTIONS = {"What", "Which", "Whether", "How", "That", "Those", "Where", "When"}
PREPOSITIONS = {"Of", "By", "As", "In", "For", "With", "Without", "On", "At", "From", "To"}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring: of the module, classes, functions, and of assignments, which precede theirs."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for before, each in zip((None, *node.body), node.body, strict=False):
            documents = before is None or isinstance(before, ast.Assign | ast.AnnAssign)
            if documents and isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                yield each.lineno, str(each.value.value)


def riddles(source: str, name: str) -> list[str]:
    """``name:line: first line`` of each docstring in a source that begins with a question word or a preposition."""
    found = []
    for line, text in sorted(docstrings(ast.parse(source))):
        first = text.split()[0].strip("`*\"'(,:;.") if text.split() else ""
        if first in QUESTIONS | PREPOSITIONS:
            found.append(f"{name}:{line}: {text.strip().splitlines()[0]}")
    return found


def test_docstrings_begin_with_a_noun_or_a_verb():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    assert [line for path in files for line in riddles(path.read_text(), str(path.relative_to(ROOT)))] == []


MADE_UP = '''"""Of a module."""

LIMIT = 3
"""Where it ends."""


class Box:
    """As a class."""

    side: int = 1
    """Which side."""
    other: int = 2
    """Side that is opposite."""

    def area(self):
        """``What`` it covers."""
        "By itself, a string after a docstring documents nothing."
        return self.side


def name():
    """Name of the box."""
    "Of no interest either."
'''


def test_a_docstring_that_begins_otherwise_is_found_with_its_file_and_line():
    assert riddles(MADE_UP, "made/up.py") == [
        "made/up.py:1: Of a module.",
        "made/up.py:4: Where it ends.",
        "made/up.py:8: As a class.",
        "made/up.py:11: Which side.",
        "made/up.py:16: ``What`` it covers.",
    ]
