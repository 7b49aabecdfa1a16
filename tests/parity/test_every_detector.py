"""Every detector takes a training step at 320 pixels, with the same losses on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, optim, sharding, train
from cnnjax.tasks import classify, detect

SIZE, IMAGES = 320, 8


def batch():
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 200, (IMAGES, 6, 2)), rng.uniform(20, 120, (IMAGES, 6, 2))
    return {
        "image": rng.random((IMAGES, SIZE, SIZE, 3), np.float32),
        "boxes": np.concatenate([corner, corner + side], -1).clip(0, SIZE).astype(np.float32),
        "labels": rng.integers(0, 5, (IMAGES, 6)).astype(np.int32),
        "box_mask": np.arange(6) < rng.integers(1, 7, (IMAGES, 1)),
    }


@pytest.mark.parametrize("name", models.names("detection"))
def test_a_step_is_the_same_on_eight_devices(name):
    model = models.create(name, num_classes=5)
    task = detect.task(model, classify.unit, list("abcde"))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    phase = optim.Phase("all", 2, ((".*", optim.warmup_cosine(1e-4, 2)),))
    plan = train.Plan(task=task, phases=(phase,), optimizer=optim.sgd(0.9), steps_per_epoch=2, clip_norm=1.0)
    found = []
    for devices in (jax.devices()[:1], jax.devices()[:8]):
        mesh = sharding.make_mesh(devices)
        state = sharding.place(train.init_state(plan, variables), mesh)
        _, metrics = train.make_train_step(plan, phase, state, mesh)(state, sharding.shard_batch(batch(), mesh))
        assert metrics["finite"]
        found.append({key: float(x) for key, x in jax.device_get(metrics["sums"]).items()})
    one, eight = found
    assert one.keys() == eight.keys()
    for key, value in one.items():
        assert value > 0
        assert eight[key] == pytest.approx(value, rel=1e-5), key
