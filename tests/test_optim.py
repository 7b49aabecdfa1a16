"""Phases, rules, schedules and optimizers, against hand values and torch's/Keras' documented formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import optim
from cnnjax.types import UserError

PARAMS = {
    "base": {"conv": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}, "bn": {"scale": jnp.ones(2)}},
    "head": {"kernel": jnp.full((2, 3), 3.0), "bias": jnp.zeros(3)},
}
ONE = optax.constant_schedule(1.0)


def test_inverse_time_decay_is_keras_decay():
    schedule = optim.inverse_time_decay(0.2, 0.01)
    np.testing.assert_allclose([schedule(t) for t in (0, 1, 100)], [0.2, 0.2 / 1.01, 0.1], rtol=1e-6)


def test_warmup_cosine_hand_values():
    schedule = optim.warmup_cosine(1.0, steps=110, warmup=10)
    np.testing.assert_allclose([schedule(t) for t in (0, 5, 10, 60, 110)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    assert optim.warmup_cosine(1.0, steps=10)(0) == 1.0
    with pytest.raises(UserError, match="warm-up of 10 steps does not fit"):
        optim.warmup_cosine(1.0, steps=10, warmup=10)


def test_step_decay_multiplies_at_each_boundary():
    schedule = optim.step_decay(1.0, [10, 20], 0.1)
    np.testing.assert_allclose([schedule(t) for t in (9, 11, 21)], [1, 0.1, 0.01], rtol=1e-6)


def test_first_rule_that_matches_decides():
    rules = ((".*/bias", None), ("head/.*", ONE), (".*", None))
    trainable, frozen = optim.split(PARAMS, rules)
    assert list(trainable) == ["head/kernel"]
    restored = optim.unflatten(trainable | frozen)
    assert jax.tree.structure(restored) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("head/.*", ONE),), "no rule covers .*base/conv/kernel"),
        (((".*", ONE), ("haed/.*", None)), "no parameter matches .*haed"),
        (((".*", None),), "freeze every parameter"),
    ],
)
def test_rules_that_miss_are_errors(rules, message):
    with pytest.raises(UserError, match=message):
        optim.split(PARAMS, rules)


def test_frozen_modules_follow_their_parameters():
    statistics = {"base": {"bn": {"mean": 0, "var": 0}}, "plain": {"mean": 0}}

    def frozen(rules):
        return optim.frozen_modules(PARAMS, statistics, rules)

    assert frozen((("head/.*", ONE), (".*", None))) == {"base/bn", "plain"}
    assert frozen(((".*", ONE),)) == set()
    # Freezing a bias elsewhere does not freeze a layer whose scale trains.
    assert frozen(((".*/bias", None), (".*", ONE))) == set()


def _step(phase, make, grads, clip_norm=None):
    trainable, _ = optim.split(PARAMS, phase.rules)
    tx = optim.optimizer(phase, PARAMS, make, clip_norm)
    return tx.update(dict.fromkeys(trainable, grads), tx.init(trainable), trainable)[0], trainable


def test_each_group_has_its_own_rate():
    rules = (("base/.*", optax.constant_schedule(0.1)), ("head/.*", optax.constant_schedule(10.0)))
    updates, _ = _step(optim.Phase("p", 1, rules), optim.sgd(0.0), jnp.float32(1))
    assert updates["base/conv/bias"] == pytest.approx(-0.1)
    assert updates["head/bias"] == pytest.approx(-10)
    assert optim.rates(optim.Phase("p", 1, rules), 0) == {"base/.*": pytest.approx(0.1), "head/.*": pytest.approx(10)}


def test_weight_decay_is_for_kernels_only():
    phase = optim.Phase("p", 1, ((".*", ONE),))
    trainable, _ = optim.split(PARAMS, phase.rules)
    tx = optim.optimizer(phase, PARAMS, optim.sgd(0.9, weight_decay=0.5))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, trainable), tx.init(trainable), trainable)
    np.testing.assert_allclose(updates["head/kernel"], -1.5)  # −rate · decay · 3
    assert not updates["base/bn/scale"].any()
    assert not updates["base/conv/bias"].any()


def test_sgd_momentum_is_v_then_w():
    """v ← m·v + g, w ← w − rate·v: torch's and Keras' momentum, hand-computed over three steps."""
    phase = optim.Phase("p", 3, ((".*", optax.constant_schedule(0.5)),))
    params = {"w": jnp.float32(1)}
    tx = optim.optimizer(phase, params, optim.sgd(0.9))
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update({"w": jnp.float32(2)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["w"]))
    np.testing.assert_allclose(seen, [1 - 1.0, 0 - 1.9, -1.9 - 2.71], rtol=1e-6)


def test_adamw_first_step_is_rate_times_sign_plus_decay():
    phase = optim.Phase("p", 1, ((".*", optax.constant_schedule(0.01)),))
    trainable, _ = optim.split(PARAMS, phase.rules)
    tx = optim.optimizer(phase, PARAMS, optim.adamw(weight_decay=0.1))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, trainable), tx.init(trainable), trainable)
    np.testing.assert_allclose(updates["head/kernel"], -0.01 * (1 + 0.1 * 3), rtol=1e-5)
    np.testing.assert_allclose(updates["head/bias"], -0.01, rtol=1e-5)


def test_clipping_is_over_all_groups_together():
    rules = (("base/.*", ONE), ("head/.*", ONE))
    trainable, _ = optim.split(PARAMS, rules)
    tx = optim.optimizer(optim.Phase("p", 1, rules), PARAMS, optim.sgd(0.0), clip_norm=1.0)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 7.0), trainable)
    updates, _ = tx.update(grads, tx.init(trainable), trainable)
    assert optax.tree.norm(updates) == pytest.approx(1.0)
