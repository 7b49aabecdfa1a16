"""WordTree: classes of a tree of concepts, from coarse to fine (Redmon & Farhadi 2017, YOLO9000, sec. 4).

A network gives one logit for each node. Children of one parent exclude one another, so a softmax over each set of
siblings gives P(node | parent), and the product along the way from the root gives P(node). A label may be any node:
data that is known to be a dog trains the nodes from the root to "dog" and says nothing about breeds.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array, UserError

ROOT = -1  # parent of the coarsest nodes


@dataclass(frozen=True)
class WordTree:
    """Nodes of a tree, each after its parent.

    Attributes:
      names: name of each node.
      parents: number of each node's parent, ``ROOT`` for the coarsest.

    Raises:
      UserError: a name twice, a parent that is not before its child, or names and parents that differ in number.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.parents) or not self.names:
            raise UserError(f"a tree has a parent for each name, got {len(self.names)} and {len(self.parents)}")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise UserError(f"{twice!r} is in the tree twice: nodes have names of their own")
        for node, parent in enumerate(self.parents):
            if not ROOT <= parent < node:
                raise UserError(f"the parent of {self.names[node]!r} is number {parent}: parents come before children")

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """Number of each node's set of siblings, int32 [k]."""
        return np.unique(self.parents, return_inverse=True)[1].astype(np.int32)

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """Each node and its ancestors, itself first, filled up with ``ROOT``: int32 [k, depth]."""
        paths = []
        for node in range(len(self.names)):
            path = [node]
            while self.parents[path[-1]] != ROOT:
                path.append(self.parents[path[-1]])
            paths.append(path)
        depth = max(map(len, paths))
        return np.array([path + [ROOT] * (depth - len(path)) for path in paths], np.int32)


def from_paths(paths: Sequence[Sequence[str]]) -> WordTree:
    """Tree of the ways from the root to the classes, such as ``("animal", "dog", "husky")``.

    Raises:
      UserError: a name has two parents, or a way is empty.
    """
    parents: dict[str, str | None] = {}
    for path in paths:
        if not path:
            raise UserError("a class has no names: each wants the way from the root to it")
        for parent, name in zip((None, *path[:-1]), path, strict=True):
            if parents.setdefault(name, parent) != parent:
                raise UserError(f"{name!r} is below {parents[name]!r} and {parent!r}: a tree has one way to each node")
    numbers = {name: number for number, name in enumerate(parents)}
    return WordTree(tuple(parents), tuple(ROOT if parent is None else numbers[parent] for parent in parents.values()))


def log_conditional(tree: WordTree, logits: Array) -> jax.Array:
    """Logarithm of P(node | parent): a softmax over each set of siblings; ``[..., k]`` → ``[..., k]``, float32."""
    chex.assert_axis_dimension(logits, -1, len(tree.names))
    count = int(tree.groups.max()) + 1
    x = jnp.moveaxis(jnp.asarray(logits, jnp.float32), -1, 0)
    top = jax.lax.stop_gradient(jax.ops.segment_max(x, tree.groups, count))[tree.groups]
    total = jax.ops.segment_sum(jnp.exp(x - top), tree.groups, count)[tree.groups]
    return jnp.moveaxis(x - top - jnp.log(total), 0, -1)


def log_probability(tree: WordTree, logits: Array) -> jax.Array:
    """Logarithm of P(node), the sum along the way from the root: ``[..., k]`` → ``[..., k]``, float32."""
    conditional = log_conditional(tree, logits)
    way = conditional[..., tree.ancestors]
    return jnp.where(tree.ancestors == ROOT, 0, way).sum(-1)


def loss(tree: WordTree, logits: Array, labels: Array) -> jax.Array:
    """Cross-entropy at every level from the root to the label: −log P(label), in nats.

    Args:
      logits: ``[..., k]``.
      labels: ``[...]``, numbers of nodes at any level.

    Returns:
      ``[...]``.
    """
    found = log_probability(tree, logits)
    return -jnp.take_along_axis(found, jnp.asarray(labels)[..., None], axis=-1)[..., 0]


def predict(tree: WordTree, logits: Array, threshold: float = 0.5) -> tuple[jax.Array, jax.Array]:
    """Deepest node that is certain: from the root to the likeliest child each time, while P(node) > ``threshold``.

    Returns:
      Numbers of nodes, int32 ``[...]``, ``ROOT`` where not even a coarsest node is certain, and their P(node), 1 for
      ``ROOT``.
    """
    probability = jnp.exp(log_probability(tree, logits))
    parents = jnp.array(tree.parents)
    node = jnp.full(probability.shape[:-1], ROOT, jnp.int32)
    certain = jnp.ones(node.shape)
    for _ in range(tree.ancestors.shape[1]):
        of_children = jnp.where(parents == node[..., None], probability, -1)
        child, best = of_children.argmax(-1).astype(jnp.int32), of_children.max(-1)
        deeper = best > threshold
        node, certain = jnp.where(deeper, child, node), jnp.where(deeper, best, certain)
    return node, certain
