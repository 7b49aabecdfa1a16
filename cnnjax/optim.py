"""Phases of training, with ordered rules that give each parameter a learning rate or freeze it; optimizers.

A phase is a list of ordered ``(regex, schedule)`` rules over parameter paths such as ``conv1/kernel``; the
first rule that matches decides, ``None`` freezes. Every parameter must be covered and every rule must match
something: a misspelled pattern is an error, not a layer that trains unnoticed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import traverse_util

from cnnjax.types import PyTree, Schedule, UserError

Rule = tuple[str, Schedule | None]
MakeOptimizer = Callable[[Schedule], optax.GradientTransformation]


@dataclass(frozen=True)
class Phase:
    """Part of a training run with one set of rules.

    Attributes:
      name: shown in reports.
      steps: length in optimizer steps.
      rules: ordered ``(regex, schedule)``, matched against the whole path; a schedule maps the step *within the
        phase* to a learning rate, ``None`` freezes.
    """

    name: str
    steps: int
    rules: tuple[Rule, ...]


def inverse_time_decay(learning_rate: float, decay: float) -> Schedule:
    """Schedule ``learning_rate / (1 + decay · t)``, t in steps: the chapter's ``decay=`` of Keras' SGD."""
    return lambda step: learning_rate / (1.0 + decay * step)


def warmup_cosine(peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """Schedule that rises linearly from 0 over ``warmup`` steps, then falls as half a cosine to ``end`` at ``steps``.

    Source: Loshchilov and Hutter 2017 (SGDR) eq. 5 without restarts; Goyal et al. 2017 section 2.2 for the warm-up.

    Raises:
      UserError: the warm-up is not shorter than the schedule.
    """
    if not 0 <= warmup < steps:
        raise UserError(f"warm-up of {warmup} steps does not fit a schedule of {steps}: use 0 … {steps - 1}")
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, end)


def step_decay(learning_rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """Schedule that multiplies ``learning_rate`` by ``factor`` at each of the ``boundaries`` (in steps)."""
    return optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(boundaries, factor))


def _kernels(params: PyTree) -> PyTree:
    """Mask for weight decay: True for kernels, False for biases and normalization scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def sgd(momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> MakeOptimizer:
    """SGD with momentum and L2 decay of the kernels (decay added to the gradient, as in the papers of 2012-2017)."""
    return lambda schedule: optax.chain(
        optax.add_decayed_weights(weight_decay, _kernels), optax.sgd(schedule, momentum, nesterov)
    )


def adamw(weight_decay: float = 1e-4) -> MakeOptimizer:
    """AdamW (Loshchilov and Hutter 2019), decay on kernels only."""
    return lambda schedule: optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flattens a nested dict to ``{"conv1/kernel": leaf}``."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> PyTree:
    """Restores the nested dict that ``flatten`` flattened."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def match(paths: Sequence[str], rules: Sequence[Rule]) -> dict[str, int]:
    """Index of the first rule that matches, for each path.

    Raises:
      UserError: some path is covered by no rule, or some rule matches no path (both are listed).
    """
    compiled = [re.compile(pattern) for pattern, _ in rules]
    found = {path: next((i for i, r in enumerate(compiled) if r.fullmatch(path)), None) for path in paths}
    missed = [path for path, index in found.items() if index is None]
    idle = [rules[i][0] for i, r in enumerate(compiled) if not any(r.fullmatch(p) for p in paths)]
    if missed or idle:
        raise UserError(
            f"optimizer rules: no rule covers {missed[:20]}; no parameter matches {idle[:20]}; "
            f"the parameters are {list(paths)[:40]}"
        )
    return {path: index for path, index in found.items() if index is not None}


def split(params: PyTree, rules: Sequence[Rule]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into flat ``(trainable, frozen)``; ``unflatten(trainable | frozen)`` is ``params`` again.

    Raises:
      UserError: as ``match``, or every parameter is frozen.
    """
    flat = flatten(params)
    index = match(list(flat), rules)
    trainable = {path: leaf for path, leaf in flat.items() if rules[index[path]][1] is not None}
    if not trainable:
        raise UserError(f"the rules {[pattern for pattern, _ in rules]} freeze every parameter: nothing would train")
    return trainable, {path: leaf for path, leaf in flat.items() if path not in trainable}


def frozen_modules(params: PyTree, statistics: PyTree, rules: Sequence[Rule]) -> frozenset[str]:
    """Paths of the normalization layers that must run in inference mode: none of their parameters trains.

    A layer that has statistics but no parameter of its own follows the first rule that matches its statistics.
    """
    trainable, frozen = split(params, rules)
    training, owning = ({_module(path) for path in paths} for paths in (trainable, trainable | frozen))

    def is_frozen(path: str) -> bool:
        if _module(path) in owning:
            return _module(path) not in training
        return next((schedule is None for pattern, schedule in rules if re.fullmatch(pattern, path)), False)

    return frozenset(_module(path) for path in flatten(statistics) if is_frozen(path))


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def optimizer(
    phase: Phase, params: PyTree, make: MakeOptimizer, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Optimizer of the trainable (flat) parameters of a phase; each rule has its own schedule.

    Args:
      phase: its rules and schedules.
      params: the model's parameters (nested).
      make: schedule → optimizer, e.g. ``sgd(0.9)``.
      clip_norm: the gradient is scaled down to this global L2 norm (over all groups together) when it is larger.
    """
    trainable, _ = split(params, phase.rules)
    index = match(list(flatten(params)), phase.rules)
    groups = {str(i): make(s) for i, (_, s) in enumerate(phase.rules) if s is not None}
    grouped = optax.partition(groups, {path: str(index[path]) for path in trainable})
    return grouped if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), grouped)


def rates(phase: Phase, step: int) -> dict[str, float]:
    """Learning rate of each rule at ``step`` (within the phase), by the rule's pattern."""
    return {pattern: float(schedule(step)) for pattern, schedule in phase.rules if schedule is not None}
