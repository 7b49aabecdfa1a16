"""Trees of concepts in files: nested JSON, Darknet's ``.tree``, and WordNet's pairs of ids.

tree = trees.read("animals.json", classes)     # {"animal": ["kangaroo", {"dog": ["husky", "pug"]}]}
tree.names, tree.parents                       # each node after its parent: see ops.wordtree
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax.ops.wordtree import ROOT
from cnnjax.types import UserError

EXPECTED = (
    'nested JSON ({"animal": ["cat", {"dog": ["husky", "pug"]}]}), lines "NAME NUMBER_OF_PARENT" with -1 for the '
    'coarsest (Darknet), or lines "PARENT CHILD" of WordNet\'s ids (n02084071)'
)
_WORDNET_ID = re.compile(r"n\d{8}")


class WordTree(NamedTuple):
    """Nodes of a tree, each after its parent.

    Attributes:
      names: name of each node.
      parents: number of each node's parent, ``ROOT`` for the coarsest.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]

    def labels(self, classes: Sequence[str]) -> list[int]:
        """Number of the node of each class.

        Raises:
          UserError: a class is not in the tree.
        """
        numbers = {name: number for number, name in enumerate(self.names)}
        if absent := [name for name in classes if name not in numbers]:
            raise UserError(f"not in the tree: {', '.join(absent[:5])}; it has {', '.join(self.names[:10])}: add them")
        return [numbers[name] for name in classes]


def read(path: Path, classes: Sequence[str]) -> WordTree:
    """Tree of a file that has every class as a node; of WordNet's pairs only what ``classes``, its ids, need.

    Raises:
      UserError: the file cannot be read, is no tree, or a class is not in it.
    """
    try:
        text = path.expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no tree of classes ({error}); expected {EXPECTED}") from error
    rows = [line.split() for line in text.splitlines() if line.strip()]
    try:
        if text.lstrip()[:1] in ("{", "["):
            tree = from_ways(list(_ways(json.loads(text), ())))
        elif rows and all(len(row) == 2 and all(map(_WORDNET_ID.fullmatch, row)) for row in rows):
            parents: dict[str, list[str]] = {}
            for parent, child in rows:
                parents.setdefault(child, []).append(parent)
            tree = of_wordnet(parents, classes)
        elif rows and all(len(row) >= 2 and re.fullmatch(r"-?\d+", row[-1]) for row in rows):
            tree = _numbered([" ".join(row[:-1]) for row in rows], [int(row[-1]) for row in rows])
        else:
            raise UserError(f"expected {EXPECTED}")
        tree.labels(classes)
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return tree


def _ways(content: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Ways from the root to the nodes of nested objects and lists."""
    if isinstance(content, str):
        yield (*above, content)
    elif isinstance(content, dict):
        for name, below in content.items():
            yield (*above, name)
            yield from _ways(below, (*above, name))
    elif isinstance(content, list):
        for each in content:
            yield from _ways(each, above)
    elif content is not None:
        raise UserError(f"{content!r} is no name; expected {EXPECTED}")


def _numbered(names: Sequence[str], parents: Sequence[int]) -> WordTree:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice!r} is in the tree twice: nodes have names of their own")
    for node, parent in enumerate(parents):
        if not ROOT <= parent < node:
            raise UserError(f"the parent of {names[node]!r} is number {parent}: parents come before children")
    return WordTree(tuple(names), tuple(parents))


def from_ways(ways: Sequence[Sequence[str]]) -> WordTree:
    """Tree of the ways from the root to the classes, such as ``("animal", "dog", "husky")``.

    Raises:
      UserError: a name has two parents, a way is empty, or there is none.
    """
    parents: dict[str, str | None] = {}
    for way in ways:
        if not way:
            raise UserError("a class has no names: each wants the way from the root to it")
        for parent, name in zip((None, *way[:-1]), way, strict=True):
            if parents.setdefault(name, parent) != parent:
                raise UserError(f"{name!r} is below {parents[name]!r} and {parent!r}: a tree has one way to each node")
    if not parents:
        raise UserError("the tree is empty")
    numbers = {name: number for number, name in enumerate(parents)}
    return WordTree(tuple(parents), tuple(ROOT if parent is None else numbers[parent] for parent in parents.values()))


def of_wordnet(parents: Mapping[str, Sequence[str]], ids: Sequence[str]) -> WordTree:
    """Tree of the concepts ``ids`` in the graph of WordNet, in which a concept may have several parents.

    First come all concepts with one way to the root, then each of the others by the way that adds the fewest nodes
    (Redmon & Farhadi 2017, sec. 4, "Building WordTree").

    Args:
      parents: id → ids of its parents; a root has none.

    Raises:
      UserError: an id is not in the graph, or its ways go in circles.
    """
    known = {*parents, *(parent for each in parents.values() for parent in each)}
    if absent := [name for name in ids if name not in known]:
        raise UserError(f"not in WordNet's pairs: {', '.join(absent[:5])}")
    ways = {name: _to_root(parents, name) for name in ids}
    tree: dict[str, str | None] = {}
    for name in sorted(ids, key=lambda name: len(ways[name]) > 1):
        way = min((_within(tree, way) for way in ways[name]), key=lambda way: sum(node not in tree for node in way))
        for parent, node in zip((None, *way[:-1]), way, strict=True):
            tree.setdefault(node, parent)
    return from_ways([_way(tree, name) for name in tree])


def _within(tree: Mapping[str, str | None], way: Sequence[str]) -> tuple[str, ...]:
    """Way to the same concept that goes on from the last of its nodes that the tree already has."""
    last = max((i for i, name in enumerate(way) if name in tree), default=None)
    return tuple(way) if last is None else (*_way(tree, way[last]), *way[last + 1 :])


def _way(tree: Mapping[str, str | None], name: str) -> tuple[str, ...]:
    parent = tree[name]
    return (name,) if parent is None else (*_way(tree, parent), name)


def _to_root(parents: Mapping[str, Sequence[str]], name: str, below: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All ways from a root to a concept."""
    if name in below:
        raise UserError(f"{name} is above itself: {' '.join((*below, name))}")
    above = parents.get(name, ())
    if not above:
        return [(name,)]
    return [(*way, name) for parent in above for way in _to_root(parents, parent, (*below, name))]
