"""Transfer learning: classification by a base network with a new head, and the rules by which its parts train.

While the base is frozen and images are not augmented, the head's input never changes: it can be computed once and kept
(``pretrained.cached_features``). Batches with such ``features`` in place of ``image`` train the head alone.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as linen
import jax
import numpy as np

from cnnjax import nn, optim
from cnnjax.tasks import classify
from cnnjax.types import Array, Key, PyTree, Schedule, UserError

NORMS = r"base/(.*/)?norm\d*/.*"
# Beginning of the base's name → learning rates by SGD with momentum of a new head, and of the whole network afterwards.
# The chapter's are Xception's; other networks forget at these what they knew.
LEARNING_RATES = {"xception": (0.2, 0.01), "": (0.02, 0.004)}
LEAST_MOMENTUM = 0.8  # with less, statistics are those of the last few batches


class Transfer(linen.Module):
    """Base, global average of its last feature maps, dropout, dense layer.

    ``apply(variables, images, train=...)`` gives logits ``[n, num_classes]`` float32 and the base's endpoints. The
    parameters are ``base/…`` and ``head/dense/…``. ``base`` is a model made with ``num_classes=None``.
    """

    base: linen.Module
    num_classes: int
    dropout: float = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the base's input."""
        return self.base.image_shape

    @property
    def aux_weights(self) -> dict[str, float]:
        """Empty: the base has no auxiliary heads without its top."""
        return {}

    def setup(self) -> None:
        self.head = nn.Head(self.num_classes, self.dropout)

    def __call__(self, images: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, endpoints = self.base(images, train=train)
        return self.head(endpoints["pooled"], train), endpoints

    def from_pooled(self, pooled: jax.Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits from the base's endpoint ``pooled``, ``[n, c]``."""
        return self.head(pooled, train), {"pooled": pooled}


def stages(base: linen.Module) -> tuple[str, ...]:
    """Parts of the base that have parameters, by name, in the order in which an image passes them."""
    order: dict[str, None] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        if len(context.module.path) == 1:
            order[context.module.path[0]] = None
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with linen.intercept_methods(record):
        tree = jax.eval_shape(base.init, keys, np.zeros((1, *base.image_shape), np.float32))
    return tuple(name for name in order if name in tree["params"])


def rules(
    names: Sequence[str],
    train_from: str,
    schedule: Callable[[float], Schedule],
    *,
    base_factor: float = 1.0,
    layer_decay: float = 1.0,
    frozen_norms: bool = False,
) -> tuple[optim.Rule, ...]:
    """Rules of ``optim`` for a network whose parameters are ``base/…`` and, new ones, all others.

    Args:
      names: ``stages`` of the base.
      train_from: "head": the base is frozen; "all": everything trains; or the first part of the base that trains.
      schedule: makes the schedule whose learning rates are scaled by a factor.
      base_factor: the learning rate of the base's last part is this times ``layer_decay`` times the head's.
      layer_decay: the learning rate of each part is this times that of the next part (Howard & Ruder 2018, sec. 3.2).
      frozen_norms: BatchNorm does not train, so it uses and keeps its statistics of the published data.

    Raises:
      UserError: the base has no part ``train_from``.
    """
    if train_from not in ("head", "all", *names):
        raise UserError(f"train from head, all or a part of the base ({', '.join(names)}); got {train_from!r}")
    first = {"head": len(names), "all": 0}.get(train_from, names.index(train_from) if train_from in names else 0)
    head: tuple[optim.Rule, ...] = ((r"(?!base/).*", schedule(1.0)),)
    frozen = tuple((rf"base/{name}/.*", None) for name in names[:first])
    if first == len(names):
        return (*head, (r"base/.*", None))
    norms: tuple[optim.Rule, ...] = ((NORMS, None),) if frozen_norms else ()
    if layer_decay == 1:  # one group, one line in tables
        return (*head, *norms, *frozen, (r"base/.*", schedule(base_factor)))
    factors = {names[i]: base_factor * layer_decay ** (len(names) - i) for i in range(first, len(names))}
    return (*head, *norms, *frozen, *((rf"base/{name}/.*", schedule(factor)) for name, factor in factors.items()))


def with_norm_momentum(base: linen.Module, momentum: float | None) -> linen.Module:
    """Copy of ``base`` whose BatchNorm averages its statistics with this momentum; None: ``base`` as it is.

    Published networks were trained for hundreds of thousands of steps with 0.99 or 0.999, which lags behind in a short
    fine-tuning.

    Raises:
      UserError: the base has no BatchNorm.
    """
    if momentum is None:
        return base
    if "momentum" not in vars(base):
        raise UserError(f"{type(base).__name__} has no BatchNorm whose momentum could be {momentum}: leave that out")
    return base.clone(momentum=momentum)


def norm_momentum(base: linen.Module, per_epoch: int) -> float | None:
    """Momentum with which BatchNorm's statistics follow a fine-tuning; None: the base has no BatchNorm.

    The publisher's or, where an epoch has so few steps that more than e⁻² of the old statistics were left after it, a
    smaller one, not below ``LEAST_MOMENTUM``.

    Args:
      per_epoch: optimizer steps in an epoch.
    """
    published = vars(base).get("momentum")
    return None if published is None else min(published, max(1 - 2 / per_epoch, LEAST_MOMENTUM))


def learning_rates(name: str) -> tuple[float, float]:
    """Learning rates of SGD for a new head and for the whole network, by the name of the base ("mobilenet_v1")."""
    return next(rates for family, rates in LEARNING_RATES.items() if name.startswith(family))


def with_learning_rates(settings: Sequence[Any], head: float, whole: float) -> tuple[Any, ...]:
    """Settings of phases whose learning rate, where it is None, becomes that of a phase of its kind.

    Args:
      settings: each a ``settings.Phase``.
      head: learning rate of a phase in which only the head trains.
      whole: learning rate of the others.
    """
    rates = [each.learning_rate or (head if each.train_from == "head" else whole) for each in settings]
    return tuple(dataclasses.replace(each, learning_rate=rate) for each, rate in zip(settings, rates, strict=True))


def base_variables(variables: PyTree) -> PyTree:
    """Variables of the base, from those of a network around it."""
    return {collection: tree["base"] for collection, tree in variables.items() if "base" in tree}


def variables(model: linen.Module, base: PyTree, key: Key) -> PyTree:
    """Variables of a network around a base: the base's own, and new layers drawn from ``key``.

    Args:
      model: has its base's parameters under ``base/…``.
      base: variables of the base.
    """
    images = np.zeros((1, *model.image_shape), np.float32)

    def fresh(key: Key) -> PyTree:
        # The base is left out, so that XLA does not compute its initial weights.
        trees = model.init(key, images)
        return {name: {part: x for part, x in tree.items() if part != "base"} for name, tree in trees.items()}

    return {name: {**tree, "base": base[name]} for name, tree in jax.jit(fresh)(key).items()}


def phases(settings: Sequence[Any], names: Sequence[str], per_epoch: int) -> tuple[optim.Phase, ...]:
    """Phases of ``optim`` from settings.

    Args:
      settings: each a ``settings.Phase``.
      names: ``stages`` of the base.
      per_epoch: optimizer steps in an epoch.
    """
    return tuple(_phase(each, names, per_epoch) for each in settings)


def _phase(settings: Any, names: Sequence[str], per_epoch: int) -> optim.Phase:
    steps = settings.epochs * per_epoch

    def schedule(factor: float) -> Callable:
        if settings.schedule == "cosine":
            return optim.warmup_cosine(factor * settings.learning_rate, steps)
        return optim.inverse_time_decay(factor * settings.learning_rate, settings.decay)

    factors = {"base_factor": settings.base_factor, "layer_decay": settings.layer_decay}
    chosen = rules(names, settings.train_from, schedule, **factors, frozen_norms=settings.frozen_norms)
    return optim.Phase(settings.name, steps, chosen)


def on_features(settings: Sequence[Any]) -> list[bool]:
    """True for each phase that may train on cached features: it and all before it train only the head.

    Args:
      settings: each a ``settings.Phase``.
    """
    frozen = itertools.accumulate((phase.train_from == "head" for phase in settings), bool.__and__)
    return [known and phase.on_features for known, phase in zip(frozen, settings, strict=True)]


def network(create: Callable[..., linen.Module], classes: Sequence[str], dropout: float = 0.0) -> Transfer:
    """Base without its top, with a head for ``classes``."""
    return Transfer(create(num_classes=None), len(classes), dropout)


task = classify.task
