"""Loss of classification: auxiliary heads count with their weights, and only in the loss."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen

from cnnjax.tasks import classify

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(4, 3, 3, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])


class TwoHeads(linen.Module):
    """Network with an auxiliary head in training."""

    aux_weights: ClassVar[dict[str, float]] = {"aux1": 0.3}
    aux: bool = True

    @linen.compact
    def __call__(self, images, *, train=False):
        x = images.reshape(len(images), -1)
        heads = [linen.Dense(3, name=name)(x) for name in ("head", "other")]
        return heads[0], {"aux1": heads[1]} if train and self.aux else {}


@pytest.mark.parametrize("target", [None, np.eye(3)[LABELS] * 0.8 + 0.2 / 3])
def test_auxiliary_loss_is_added_with_its_weight(target):
    model = TwoHeads()
    variables = model.init(KEY, IMAGES)
    batch = {"image": IMAGES, "label": LABELS} | ({} if target is None else {"target": target})
    total, (_, sums) = tiny.task(model).loss_fn(variables, batch, KEY)
    logits, endpoints = model.apply(variables, IMAGES, train=True)
    wanted = jnp.eye(3)[LABELS] if target is None else target
    main, extra = (optax.softmax_cross_entropy(x, wanted) for x in (logits, endpoints["aux1"]))
    np.testing.assert_allclose(total, main.mean() + 0.3 * extra.mean(), rtol=1e-6)
    np.testing.assert_allclose(sums["loss"], main.sum(), rtol=1e-6)


def test_a_net_built_without_its_auxiliary_heads_trains():
    variables = TwoHeads().init(KEY, IMAGES)
    total, _ = tiny.task(TwoHeads(aux=False)).loss_fn(variables, {"image": IMAGES, "label": LABELS}, KEY)
    logits, _ = TwoHeads().apply(variables, IMAGES)
    np.testing.assert_allclose(total, classify.cross_entropy(logits, LABELS).mean(), rtol=1e-6)
