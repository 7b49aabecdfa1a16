"""Small network with BatchNorm and Dropout, and a plan for it, for the tests of training."""

from typing import ClassVar

import flax.linen as linen
import jax
import numpy as np

from cnnjax import nn, optim, train
from cnnjax.tasks import classify


class Tiny(linen.Module):
    """Network of convolution, BatchNorm, ReLU, pool, dropout and dense layer: a base and a head."""

    aux_weights: ClassVar[dict[str, float]] = {}
    dropout: float = 0.5
    dtype: object = None

    @linen.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(8, 3, dtype=self.dtype, name="conv")(images)
        x = nn.BatchNorm(momentum=0.9, name="bn")(x, use_running_average=not train)
        x = nn.max_pool(linen.relu(x), 2)
        x = linen.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        return linen.Dense(10, name="head")(x).astype("float32"), {}


def batch(step, size=16):
    """Random images (float, in the range of uint8) and labels, a pure function of the step."""
    rng = np.random.default_rng(step)
    images = rng.normal(size=(size, 8, 8, 1)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


def batches(start, size=16):
    """Batches without end, from step ``start``."""
    while True:
        yield batch(start, size)
        start += 1


def learning_rate(step):
    """Schedule that changes at every step."""
    return 0.1 / (1 + 0.1 * step)


def task(model, **options):
    """Classification of ten classes by a model that takes images as they are."""
    return classify.task(model, lambda images: images, tuple("0123456789"), **options)


def plan(rules=((".*", learning_rate),), steps=20, dropout=0.5, **changes):
    """Plan of one phase for ``Tiny``."""
    settings = {
        "task": task(Tiny(dropout)),
        "phases": (optim.Phase("all", steps, rules),),
        "optimizer": optim.sgd(0.9),
        "steps_per_epoch": 5,
    }
    return train.Plan(**{**settings, **changes})


def variables():
    """Initial weights of ``Tiny``."""
    return jax.jit(Tiny().init)(jax.random.key(0), batch(0)["image"])
