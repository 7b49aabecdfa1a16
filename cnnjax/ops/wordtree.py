"""WordTree: classes that are nodes of a tree, from coarse to fine (Redmon & Farhadi 2017, YOLO9000, sec. 4).

A network gives one logit for each node. Children of one parent exclude one another, so a softmax over each set of
siblings gives P(node | parent), and the product along the way from the root gives P(node). A label may be any node:
data that is known to be a dog trains the nodes from the root to "dog" and says nothing about breeds.

A tree is its ``parents``: the number of each node's parent, which comes before it, or ``ROOT``.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.types import Array

ROOT = -1  # parent of the coarsest nodes

Parents = tuple[int, ...]


def check(parents: Sequence[int]) -> None:
    """Raises ValueError where a parent is not before its child."""
    for node, parent in enumerate(parents):
        if not ROOT <= parent < node:
            raise ValueError(f"the parent of node {node} is {parent}: parents come before children, {ROOT} is the root")


@functools.cache
def groups(parents: Parents) -> np.ndarray:
    """Number of each node's set of siblings, int32 [k]."""
    check(parents)
    return np.unique(parents, return_inverse=True)[1].astype(np.int32)


@functools.cache
def ancestors(parents: Parents) -> np.ndarray:
    """Each node and its ancestors, itself first, filled up with ``ROOT``: int32 [k, depth]."""
    check(parents)
    ways: list[list[int]] = []
    for node, parent in enumerate(parents):
        ways.append([node, *(() if parent == ROOT else ways[parent])])
    depth = max(map(len, ways))
    return np.array([way + [ROOT] * (depth - len(way)) for way in ways], np.int32)


def log_conditional(parents: Parents, logits: Array) -> jax.Array:
    """Logarithm of P(node | parent): a softmax over each set of siblings; ``[..., k]`` → ``[..., k]``, float32."""
    chex.assert_axis_dimension(logits, -1, len(parents))
    of_node = groups(parents)
    count = int(of_node.max()) + 1
    x = jnp.moveaxis(jnp.asarray(logits, jnp.float32), -1, 0)
    top = jax.lax.stop_gradient(jax.ops.segment_max(x, of_node, count))[of_node]
    total = jax.ops.segment_sum(jnp.exp(x - top), of_node, count)[of_node]
    return jnp.moveaxis(x - top - jnp.log(total), 0, -1)


def log_probability(parents: Parents, logits: Array) -> jax.Array:
    """Logarithm of P(node), the sum along the way from the root: ``[..., k]`` → ``[..., k]``, float32."""
    conditional, way = log_conditional(parents, logits), ancestors(parents)
    # One level after the other: [..., k, depth] at once is too much for trees of thousands of nodes.
    steps = (jnp.where(level == ROOT, 0, conditional[..., level]) for level in way.T)
    return functools.reduce(jnp.add, steps)


def loss(parents: Parents, logits: Array, labels: Array) -> jax.Array:
    """Cross-entropy at every level from the root to the label: −log P(label), in nats.

    Args:
      logits: ``[..., k]``.
      labels: ``[...]``, numbers of nodes at any level.

    Returns:
      ``[...]``.
    """
    found = log_probability(parents, logits)
    return -jnp.take_along_axis(found, jnp.asarray(labels)[..., None], axis=-1)[..., 0]


def predict(parents: Parents, probability: Array, threshold: float = 0.5) -> tuple[jax.Array, jax.Array]:
    """Deepest node that is certain: from the root to the likeliest child each time, while P(node) > ``threshold``.

    Args:
      probability: P(node) of each node, ``[..., k]``.

    Returns:
      Numbers of nodes, int32 ``[...]``, ``ROOT`` where not even a coarsest node is certain, and their P(node), 1 for
      ``ROOT``.
    """
    chex.assert_axis_dimension(probability, -1, len(parents))
    probability, of_node = jnp.asarray(probability), jnp.array(parents)
    node = jnp.full(probability.shape[:-1], ROOT, jnp.int32)
    certain = jnp.ones(node.shape)
    for _ in range(ancestors(parents).shape[1]):
        of_children = jnp.where(of_node == node[..., None], probability, -1)
        child, best = of_children.argmax(-1).astype(jnp.int32), of_children.max(-1)
        deeper = best > threshold
        node, certain = jnp.where(deeper, child, node), jnp.where(deeper, best, certain)
    return node, certain
