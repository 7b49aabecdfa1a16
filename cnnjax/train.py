"""Training step, evaluation step, and the epochs that a script iterates over.

The state is one flat pytree; task and optimizer are closed over by a ``Plan``. The step at s sees the batch of
(seed, s) and the key of (seed, s), so a run that is killed and resumed is bit for bit equal to one without a break.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate as running_sum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, struct
from jax.sharding import Mesh

from cnnjax import compiler, nn, optim, sharding
from cnnjax.types import Array, Batch, Key, PyTree, Rows, Sums, Task, UserError


@struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32, updates done since the start of the run.
      params: the model's parameters.
      model_state: its other collections (``{"batch_stats": …}`` or ``{}``).
      opt_state: optimizer state over the trainable parameters of the phase that ``step`` lies in.
      ema: exponential moving average of params and model_state as one dict, or None.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree

    @property
    def variables(self) -> PyTree:
        """Variables to evaluate: the moving average where there is one, else the current values."""
        return {"params": self.params, **self.model_state} if self.ema is None else self.ema


@dataclass(frozen=True)
class Plan:
    """Computation of a run, closed over by its steps.

    Attributes:
      task: its loss is minimized, its figures are logged.
      phases: phases of the run, in order.
      optimizer: schedule → optimizer, e.g. ``optim.sgd(0.9)``.
      steps_per_epoch: optimizer steps.
      seed: seed of augmentation and dropout.
      augment: (key, batch) → batch, inside the step, on the device.
      clip_norm: global L2 norm that gradients are clipped to.
      accumulate: number of parts in which the batch is computed, one after the other, for one update.
      ema_decay: decay of the moving average per step, e.g. 0.999.
      remat: recompute all but convolutions and matrix products in the backward pass: less memory, more time.
    """

    task: Task
    phases: tuple[optim.Phase, ...]
    optimizer: optim.MakeOptimizer
    steps_per_epoch: int
    seed: int = 0
    augment: Callable[[Key, Batch], Batch] | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    remat: bool = False

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, step: int) -> tuple[optim.Phase, int]:
        """The phase that the update after ``step`` belongs to, and the step at which it began."""
        ends = list(running_sum(phase.steps for phase in self.phases))
        index = min(sum(step >= end for end in ends), len(ends) - 1)
        return self.phases[index], ends[index] - self.phases[index].steps


def init_state(plan: Plan, variables: PyTree, step: int = 0) -> TrainState:
    """State with fresh optimizer state for the phase at ``step``; traceable, so that it also gives the shapes."""
    params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    phase, _ = plan.phase_of(step)
    trainable, _ = optim.split(params, phase.rules)
    opt_state = optim.optimizer(phase, params, plan.optimizer, plan.clip_norm).init(trainable)
    ema = None if plan.ema_decay is None else dict(variables)
    return TrainState(jnp.int32(step), params, model_state, opt_state, ema)


def abstract_state(plan: Plan, variables: PyTree, mesh: Mesh, step: int) -> TrainState:
    """Shapes, dtypes and shardings of the state at ``step``, into which a checkpoint is read."""
    shapes = jax.eval_shape(lambda v: init_state(plan, v, step), variables)
    where = sharding.state_sharding(mesh, shapes)
    return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)


def _frozen_in_inference_mode(frozen: frozenset[str]) -> Callable:
    """Interceptor: a frozen BatchNorm uses and keeps its running statistics, also where ``train`` is True."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        layer = context.module
        if isinstance(layer, nn.BatchNorm) and context.method_name == "__call__" and "/".join(layer.path) in frozen:
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return intercept


def save_products(prim: Any, *_: Any, **__: Any) -> bool:
    """Checkpoint policy of ``Plan.remat``: keep results that are costly to compute, of convolutions and products."""
    return prim.name in ("conv", "conv_general_dilated", "dot_general")


def _gradient(plan: Plan, rules: tuple[optim.Rule, ...]) -> Callable:
    """(params, model_state, batch, key) → (gradients of the trainable part, loss, model_state, sums)."""

    def compute(params: PyTree, model_state: PyTree, batch: Batch, key: Key) -> tuple:
        trainable, frozen = optim.split(params, rules)
        stats = model_state.get("batch_stats", {})
        intercept = _frozen_in_inference_mode(optim.frozen_modules(params, stats, rules))

        def loss(trainable: PyTree) -> tuple[Array, tuple[PyTree, Sums]]:
            variables = {"params": optim.unflatten(trainable | frozen), **model_state}
            with linen.intercept_methods(intercept):
                return plan.task.loss_fn(variables, batch, key)

        loss = jax.checkpoint(loss, policy=save_products) if plan.remat else loss
        (value, (new_state, sums)), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return grads, value, {**model_state, **new_state}, sums

    return compute


def _accumulated(compute: Callable, parts: int) -> Callable:
    """Function ``compute`` over ``parts`` slices of the batch, one after the other; gradients and loss are averaged."""

    def scan(params: PyTree, model_state: PyTree, batch: Batch, key: Key) -> tuple:
        # Part j takes rows j, j + parts, …: each device of a mesh then has an equal share of them.
        sliced = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        first = jax.tree.map(lambda x: x[0], sliced)
        shapes = jax.eval_shape(compute, params, model_state, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1], shapes[3]))

        def body(carry: tuple, xs: tuple) -> tuple[tuple, None]:
            model_state, totals = carry
            index, part = xs
            grads, loss, model_state, sums = compute(params, model_state, part, jax.random.fold_in(key, index))
            return (model_state, jax.tree.map(jnp.add, totals, (grads, loss, sums))), None

        (model_state, totals), _ = jax.lax.scan(body, (model_state, zeros), (jnp.arange(parts), sliced))
        grads, loss = jax.tree.map(lambda total: total / parts, totals[:2])
        return grads, loss, model_state, totals[2]

    return scan


def make_train_step(plan: Plan, phase: optim.Phase, state: TrainState, mesh: Mesh) -> Callable:
    """Jitted (state, batch) → (state, metrics); the state is donated, the batch split over the mesh.

    Args:
      state: a state of this phase; only its structure and shapes are used.

    Returns:
      A step whose metrics, on the device, are ``sums`` of the loss function, ``mean_loss``, ``grad_norm`` (before
      clipping), ``update_norm``, and ``finite`` (True where these three are finite).
    """
    tx = optim.optimizer(phase, state.params, plan.optimizer, plan.clip_norm)
    compute = _gradient(plan, phase.rules)
    compute = compute if plan.accumulate == 1 else _accumulated(compute, plan.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(plan.seed), state.step))
        batch = batch if plan.augment is None else plan.augment(augment_key, batch)
        grads, loss, model_state, sums = compute(state.params, state.model_state, batch, model_key)
        trainable, frozen = optim.split(state.params, phase.rules)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        params = optim.unflatten(optax.apply_updates(trainable, updates) | frozen)
        ema = state.ema if plan.ema_decay is None else _average(plan.ema_decay, state.ema, params, model_state)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        finite = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
        metrics = {"sums": sums, **norms, "mean_loss": loss, "finite": finite}
        return TrainState(state.step + 1, params, model_state, opt_state, ema), metrics

    where, rows = sharding.state_sharding(mesh, state), sharding.split_rows(mesh)
    return jax.jit(
        step,
        in_shardings=(where, rows),
        out_shardings=(where, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=_options(mesh),
    )


def _options(mesh: Mesh) -> dict[str, str]:
    return compiler.options(mesh.devices.flat[0].platform)


def _average(decay: float, ema: PyTree, params: PyTree, model_state: PyTree) -> PyTree:
    # e + (1 − d)(v − e) leaves frozen values bit for bit as they are; d·e + (1 − d)·v would not.
    return jax.tree.map(lambda e, v: e + (1 - decay) * (v - e), ema, {"params": params, **model_state})


def make_eval_step(eval_fn: Callable[[PyTree, Batch], tuple[Sums, Rows]], mesh: Mesh) -> Callable:
    """Jitted (variables, batch) → (sums, rows, the batch's ``example_mask``), whole on every device."""

    def step(variables: PyTree, batch: Batch) -> tuple[Sums, Rows, Array]:
        return *eval_fn(variables, batch), batch["example_mask"]

    # Variables stay where they were placed; those on the default device go to all devices.
    whole, rows = sharding.replicated(mesh), sharding.split_rows(mesh)
    return jax.jit(step, in_shardings=(None, rows), out_shardings=whole, compiler_options=_options(mesh))


def evaluate(
    eval_step: Callable, variables: PyTree, batches: Iterable[Batch], mesh: Mesh
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sums added up over ``batches`` (host, this process's rows), and rows of all their examples in order.

    Rows that only fill up a batch are left out. Every process gets everything.

    Args:
      eval_step: made by ``make_eval_step``.
    """
    pending: deque[Any] = deque()
    found: list[tuple[Sums, Rows]] = []

    def settle(keep: int) -> None:
        while len(pending) > keep:
            sums, rows, mask = jax.device_get(pending.popleft())
            found.append((sums, {name: x[mask > 0] for name, x in rows.items()}))

    for batch in batches:
        pending.append(eval_step(variables, sharding.shard_batch(batch, mesh)))
        settle(2)  # the device always has work, and only a few batches wait on it
    settle(0)
    if not found:
        return {}, {}
    totals, rows = add_up([sums for sums, _ in found]), [rows for _, rows in found]
    return totals, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def add_up(sums: Sequence[Sums]) -> dict[str, np.ndarray]:
    """Totals of the sums of batches, in float64 and int64."""
    return jax.tree.map(lambda *parts: sum(map(_widen, parts)), *sums)


def _widen(x: Array) -> np.ndarray:
    return np.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64)


class NonFiniteError(UserError):
    """The loss, the gradient or the update became inf or nan."""


@dataclass
class Epoch:
    """State after an epoch, or at a point where it is to be saved; ``epochs`` yields it.

    Attributes:
      step: updates done.
      index: epochs done.
      phase: name of the phase that the last update belonged to.
      state: donated by the next step: save or evaluate it before going on.
      finished: False where an epoch is only interrupted, to be saved.
    """

    step: int
    index: int
    phase: str
    state: TrainState
    finished: bool


def epochs(
    plan: Plan,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    mesh: Mesh,
    *,
    on_step: Callable[[int, Mapping[str, Any]], None],
    interrupt: Callable[[int], bool],
) -> Iterator[Epoch]:
    """Trains from ``state`` to the end of the plan.

    Args:
      batches: step → host batches from that step on, this process's rows.
      on_step: called in order with every step and its metrics, a step or two after it was started.
      interrupt: asked after each step; True yields an unfinished ``Epoch`` there.

    Raises:
      NonFiniteError: the message names the step. All that was yielded before is finite.
    """
    step = int(state.step)
    stream = batches(step)
    pending: deque[tuple[int, Any]] = deque()
    while step < plan.total_steps:
        phase, start = plan.phase_of(step)
        train_step = make_train_step(plan, phase, state, mesh)
        while step < start + phase.steps:
            state, metrics = train_step(state, sharding.shard_batch(next(stream), mesh))
            step += 1
            pending.append((step, metrics))
            _settle(pending, 2, on_step, phase, start)
            index, rest = divmod(step, plan.steps_per_epoch)
            last = step == start + phase.steps
            if rest == 0 or last or interrupt(step):
                _settle(pending, 0, on_step, phase, start)
                state = _enter_phase(plan, state, step, mesh) if last and step < plan.total_steps else state
                yield Epoch(step, index, phase.name, state, rest == 0 or last)


def _settle(pending: deque, keep: int, on_step: Callable, phase: optim.Phase, start: int) -> None:
    """Waits for the metrics of all but the newest ``keep`` steps: the device always has work, none goes unchecked."""
    while len(pending) > keep:
        step, metrics = pending.popleft()
        metrics = jax.device_get(metrics)
        if not metrics["finite"]:
            raise NonFiniteError(
                f"not finite at step {step}: loss {metrics['mean_loss']}, gradient norm {metrics['grad_norm']}, update "
                f"norm {metrics['update_norm']}, learning rates {optim.rates(phase, step - 1 - start)}: lower the "
                "learning rate, warm up longer or clip the gradient; the last checkpoint is from before"
            )
        on_step(step, metrics)


def _enter_phase(plan: Plan, state: TrainState, step: int, mesh: Mesh) -> TrainState:
    """State at the start of the next phase, with a fresh optimizer, as after compiling again in Keras."""
    fresh = init_state(plan, {"params": state.params, **state.model_state}, step)
    return replace(state, opt_state=sharding.place(fresh.opt_state, mesh))
