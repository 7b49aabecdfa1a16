"""Models for published weights, for the tests of the catalog."""

import flax.linen as linen

from cnnjax import models
from cnnjax.weights import Published


def create(entry: Published, **overrides) -> linen.Module:
    """The model of a catalog entry; ``overrides`` as in ``models.create``."""
    return models.create(entry.model, **{"num_classes": entry.classes, **entry.fields, **overrides})
