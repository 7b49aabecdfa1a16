"""data.formats.trees: the kinds of files, and WordNet's graph made a tree as YOLO9000's paper makes it."""

import json

import pytest

from cnnjax.data.formats import trees
from cnnjax.types import UserError

ANIMALS = {"animal": ["cat", {"dog": ["husky", "pug"]}], "car": None}


def test_nested_json(tmp_path):
    (path := tmp_path / "tree.json").write_text(json.dumps(ANIMALS))
    tree = trees.read(path, ["pug", "dog"])
    assert tree.names == ("animal", "cat", "dog", "husky", "pug", "car")
    assert tree.parents == (-1, 0, 0, 2, 2, -1)
    assert tree.labels(["pug", "dog"]) == [4, 2]


def test_the_file_of_darknet(tmp_path):
    (path := tmp_path / "9k.tree").write_text("n00001740 -1\nn00002137 0\nn00001930 0\nn04424418 2\n")
    assert trees.read(path, ["n04424418"]) == (("n00001740", "n00002137", "n00001930", "n04424418"), (-1, 0, 0, 2))
    path.write_text("living thing -1\nseal 0\n")
    assert trees.read(path, ["seal"]).names == ("living thing", "seal")


# A dog is a canine and a domestic animal, as in WordNet.
ENTITY, ANIMAL, CANINE, DOMESTIC, DOG, WOLF, CAR = (f"n0000000{i}" for i in range(7))
PAIRS = [
    (ENTITY, ANIMAL),
    (ANIMAL, CANINE),
    (ANIMAL, DOMESTIC),
    (CANINE, DOG),
    (DOMESTIC, DOG),
    (CANINE, WOLF),
    (ENTITY, CAR),
]


def test_of_two_ways_the_one_that_adds_less(tmp_path):
    (path := tmp_path / "is_a.txt").write_text("\n".join(" ".join(pair) for pair in PAIRS))
    tree = trees.read(path, [DOG, WOLF])
    # The wolf, with one way to the root, comes first: the dog then adds nothing but itself.
    assert {name: tree.names[parent] for name, parent in zip(tree.names, tree.parents, strict=True) if parent >= 0} == {
        ANIMAL: ENTITY,
        CANINE: ANIMAL,
        WOLF: CANINE,
        DOG: CANINE,
    }
    assert trees.read(path, [DOG]).names == (ENTITY, ANIMAL, CANINE, DOG)
    assert trees.read(path, [CAR, ANIMAL]).parents == (-1, 0, 0)


def test_a_concept_in_the_tree_keeps_its_place():
    # C is placed below A first; D's way over B and C would give C a second parent.
    parents = {"A": ["R"], "B": ["R"], "C": ["A", "B"], "D": ["C"], "E": ["B"]}
    tree = trees.of_wordnet(parents, ["C", "D", "E"])
    above = {name: tree.names[parent] for name, parent in zip(tree.names, tree.parents, strict=True) if parent >= 0}
    assert above == {"B": "R", "E": "B", "C": "B", "D": "C"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": ["c"], "b": ["c"]}', "'c' is below 'a' and 'b'"),
        ('{"a": [1]}', "1 is no name"),
        ("{", "Expecting property name"),
        ("{}", "the tree is empty"),
        ("a -1\na 0\n", "'a' is in the tree twice"),
        ("a 1\nb -1\n", "the parent of 'a' is number 1"),
        ("a, b, c", "expected nested JSON"),
        ("", "expected nested JSON"),
        ('{"a": ["b"]}', "not in the tree: dog; it has a, b"),
        ("n00000001 n00000002", "not in WordNet's pairs: dog"),
    ],
)
def test_what_is_no_tree(tmp_path, content, expected):
    (path := tmp_path / "tree").write_text(content)
    with pytest.raises(UserError, match=f"{path}: .*{expected}"):
        trees.read(path, ["dog"])


def test_circles_and_no_file(tmp_path):
    with pytest.raises(UserError, match="A is above itself: A B A"):
        trees.of_wordnet({"A": ["B"], "B": ["A"]}, ["A"])
    with pytest.raises(UserError, match=r"is no tree of classes .*No such file"):
        trees.read(tmp_path / "none", ["dog"])
    with pytest.raises(UserError, match="a class has no names"):
        trees.from_ways([()])
