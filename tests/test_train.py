"""Training step: its mathematics, freezing, accumulation, averaging, devices, and the errors that end a run."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cnnjax import nn, optim, sharding, train
from cnnjax.tasks import classify


def run(plan, devices=1, steps=None, size=16):
    """Trains from tiny's weights; returns the final state and the metrics of every step."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    state = sharding.place(train.init_state(plan, tiny.variables()), mesh)
    seen = []
    stop_at = steps or plan.total_steps
    for epoch in train.epochs(
        plan,
        state,
        lambda start: tiny.batches(start, size),
        mesh,
        on_step=lambda step, metrics: seen.append((step, metrics)),
        interrupt=lambda step: step == stop_at,
    ):
        if epoch.step == stop_at:
            return jax.device_get(epoch.state), seen
    raise AssertionError("the run did not reach its end")


def distance(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(x - y), initial=0)), a, b)))


def test_step_is_the_gradient_step_written_by_hand():
    plan = tiny.plan(dropout=0.0, optimizer=optim.sgd(0.0))
    before, batch = tiny.variables(), tiny.batch(0)

    def loss(params):
        (logits, _), state = tiny.Tiny(0.0).apply(
            {**before, "params": params}, batch["image"], train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), state

    (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(before["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before["params"], grads)
    state, seen = run(plan, steps=1)
    assert distance(state.params, expected) < 1e-6
    assert distance(state.model_state, stats) < 1e-6
    assert seen[0][0] == 1
    assert seen[0][1]["mean_loss"] == pytest.approx(float(value), rel=1e-5)
    assert seen[0][1]["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_are_one(accumulate):
    """They agree over 20 steps with BatchNorm, Dropout, momentum, moving average and accumulation."""
    plan = tiny.plan(ema_decay=0.9, accumulate=accumulate, clip_norm=1.0)
    one, seen_by_one = run(plan, devices=1)
    eight, seen_by_eight = run(plan, devices=8)
    assert distance(one, eight) <= 1e-5
    losses = [[float(metrics["mean_loss"]) for _, metrics in seen] for seen in (seen_by_one, seen_by_eight)]
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert distance(one.params, tiny.variables()["params"]) > 0.05  # it did train


def test_augmentation_does_not_depend_on_the_devices():
    from cnnjax.data import augment

    def shifted(key, batch):
        return augment.per_example(augment.random_flip_left_right, key, batch)

    plan = tiny.plan(augment=shifted, steps=5)
    assert distance(run(plan, devices=1)[0], run(plan, devices=8)[0]) <= 1e-5
    assert distance(run(plan)[0].params, run(tiny.plan(steps=5))[0].params) > 1e-4


def test_same_seed_same_run_other_seed_other_run():
    first, second = (run(tiny.plan(steps=5))[0] for _ in range(2))
    assert distance(first, second) == 0
    assert distance(first.params, run(tiny.plan(steps=5, seed=1))[0].params) > 1e-4


FROZEN = (("head/.*", tiny.learning_rate), (".*", None))


def test_frozen_layers_stay_bit_for_bit_and_their_statistics_too():
    before = jax.device_get(tiny.variables())
    state, _ = run(tiny.plan(FROZEN, ema_decay=0.9))
    for name in ("conv", "bn"):
        assert distance(state.params[name], before["params"][name]) == 0
        assert distance(state.ema["params"][name], before["params"][name]) == 0
    assert distance(state.model_state, {"batch_stats": before["batch_stats"]}) == 0
    assert distance(state.params["head"], before["params"]["head"]) > 0.01


def test_frozen_batchnorm_normalizes_with_its_running_statistics():
    """The loss of the frozen phase is that of inference mode in the base (no dropout here)."""
    _, seen = run(tiny.plan(FROZEN, dropout=0.0), steps=1)
    batch = tiny.batch(0)
    logits, _ = jax.jit(tiny.Tiny(0.0).apply)(tiny.variables(), batch["image"])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    assert seen[0][1]["mean_loss"] == pytest.approx(float(expected), rel=1e-5)


def _flops(rules):
    plan = tiny.plan(rules)
    mesh = sharding.make_mesh(jax.devices()[:1])
    variables = tiny.variables()
    state = jax.eval_shape(lambda v: train.init_state(plan, v), variables)
    step = train.make_train_step(plan, plan.phases[0], state, mesh)
    return step.lower(state, tiny.batch(0)).as_text().count("stablehlo.convolution")


def test_frozen_phase_does_not_propagate_back_through_the_base():
    assert _flops(((".*", tiny.learning_rate),)) == 2  # forward, and the kernel's gradient
    assert _flops(FROZEN) == 1


def test_phases_follow_each_other_with_a_fresh_optimizer():
    phases = (optim.Phase("frozen", 5, FROZEN), optim.Phase("all", 5, ((".*", tiny.learning_rate),)))
    plan = tiny.plan(phases=phases)
    assert [plan.phase_of(step)[0].name for step in (0, 4, 5, 9, 10)] == ["frozen"] * 2 + ["all"] * 3
    assert plan.phase_of(7)[1] == 5
    halfway, _ = run(plan, steps=5)
    assert jax.tree.structure(halfway.opt_state) == jax.tree.structure(
        jax.eval_shape(lambda v: train.init_state(plan, v, 5), tiny.variables()).opt_state
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(halfway.opt_state))
    state, _ = run(plan)
    assert distance(state.params["conv"], halfway.params["conv"]) > 1e-4
    assert int(state.step) == 10


def test_accumulation_is_the_mean_over_parts():
    """The mean of the parts is the gradient of the whole batch, without BatchNorm's batch statistics and dropout."""
    whole = run(tiny.plan(FROZEN, dropout=0.0, steps=5))[0]
    parts = run(tiny.plan(FROZEN, dropout=0.0, steps=5, accumulate=4))[0]
    assert distance(whole.params, parts.params) < 1e-5
    metrics = run(tiny.plan(FROZEN, accumulate=4), steps=1)[1][0][1]
    assert metrics["sums"]["count"] == 16


def test_moving_average_hand_values():
    plan = tiny.plan(ema_decay=0.9, steps=2)
    start, first, second = tiny.variables(), run(plan, steps=1)[0], run(plan, steps=2)[0]
    hand = jax.tree.map(
        lambda a, b, c: 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c, start["params"], first.params, second.params
    )
    assert distance(second.ema["params"], hand) < 1e-6
    assert second.variables is second.ema


def test_bfloat16_computes_low_but_keeps_float32_parameters():
    plan = tiny.plan(task=tiny.task(tiny.Tiny(0.0, jnp.bfloat16)), steps=3)
    low, _ = run(plan)
    high, _ = run(tiny.plan(dropout=0.0, steps=3))
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {np.dtype("float32")}
    assert 0 < distance(low.params, high.params) < 0.02


def test_remat_gives_the_same_and_keeps_less():
    assert distance(run(tiny.plan(steps=3))[0], run(tiny.plan(steps=3, remat=True))[0]) < 1e-6

    variables, batch = tiny.variables(), tiny.batch(0)

    def loss(params):
        return tiny.task(tiny.Tiny()).loss_fn({**variables, "params": params}, batch, jax.random.key(0))[0]

    def kept(loss):  # a vjp is a pytree of the arrays that it keeps for the backward pass
        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], variables["params"])
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept(jax.checkpoint(loss, policy=train.save_products)) < 0.7 * kept(loss)


@pytest.mark.parametrize("devices", [1, 8])
def test_loss_that_is_not_finite_names_the_step(devices):
    plan = tiny.plan(((".*", lambda step: jnp.where(step < 3, 0.01, jnp.inf)),))
    with pytest.raises(train.NonFiniteError, match="at step 4"):
        run(plan, devices)


def test_a_step_is_compiled_once_for_all_epochs():
    chex.clear_trace_counter()
    plan = tiny.plan(steps=10)  # two epochs
    counted = chex.assert_max_traces(plan.task.loss_fn, n=1)
    run(dataclasses.replace(plan, task=dataclasses.replace(plan.task, loss_fn=counted)), steps=10)


def test_evaluation_is_exact_for_every_batch_size():
    from cnnjax.data import pipeline
    from cnnjax.data.sources import Arrays

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (37, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, 37)
    source = Arrays({"image": images, "label": labels}, tuple("0123456789"))
    variables, results = tiny.variables(), []
    task = classify.task(tiny.Tiny(), classify.unit, source.classes)
    for devices, size in ((1, 1), (1, 16), (1, 37), (8, 8), (8, 64)):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        step = train.make_eval_step(task.eval_fn, mesh)
        results.append(train.evaluate(step, variables, pipeline.eval_batches(source, size), mesh))
    expected = task.predict(variables, images)["probabilities"]
    for _, rows in results:  # one for each example, in order, none for rows that fill the last batch
        np.testing.assert_array_equal(rows["label"], labels)
        np.testing.assert_array_equal(rows["predicted"], expected.argmax(-1))
        np.testing.assert_allclose(rows["confidence"], expected.max(-1), rtol=1e-5)
    results = [sums for sums, _ in results]
    for result in results:
        assert result["count"] == result["confusion"].sum() == 37
        assert result["correct"] == results[0]["correct"] == np.trace(result["confusion"])
        np.testing.assert_array_equal(result["confusion"], results[0]["confusion"])
        np.testing.assert_allclose(result["loss"], results[0]["loss"], rtol=1e-6)


def test_interceptor_matches_the_batchnorm_of_nn():
    """Freezing relies on models using nn.BatchNorm, as the tiny one does."""
    found = []
    import flax.linen as linen

    def watch(call, args, kwargs, context):
        found.append(type(context.module))
        return call(*args, **kwargs)

    with linen.intercept_methods(watch):
        jax.eval_shape(tiny.Tiny().init, jax.random.key(0), tiny.batch(0)["image"])
    assert nn.BatchNorm in found
