"""Image classification for any model that returns ``(logits, endpoints)``: loss, evaluation, prediction, pictures."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from cnnjax import plot, sharding, train
from cnnjax.data.host import Transform
from cnnjax.data.sources import Source
from cnnjax.metrics import classification
from cnnjax.types import Array, Batch, Key, PyTree

Preprocess = Callable[[Array], Array]
ExampleLoss = Callable[[Array, Array], Array]


def unit(images: Array) -> Array:
    """uint8 → float32 in 0 … 1."""
    return images.astype(jnp.float32) / 255


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Softmax cross-entropy [n] in nats; ``targets`` are int [n] or distributions [n, classes]."""
    targets = targets if targets.ndim == 2 else jax.nn.one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets)


def smoothed(loss: ExampleLoss, epsilon: float) -> ExampleLoss:
    """Label smoothing (Szegedy et al. 2016, section 7): targets (1 − ε)·one_hot + ε/classes."""

    def smooth(logits: Array, targets: Array) -> Array:
        targets = targets if targets.ndim == 2 else jax.nn.one_hot(targets, logits.shape[-1])
        return loss(logits, optax.smooth_labels(targets, epsilon))

    return smooth if epsilon else loss


def weighted(loss: ExampleLoss, weights: Array | None) -> ExampleLoss:
    """Each example's loss times the weight of its class, [classes]; of mixed labels, the mean of theirs."""
    if weights is None:
        return loss

    def weigh(logits: Array, targets: Array) -> Array:
        factor = targets @ weights if targets.ndim == 2 else jnp.asarray(weights)[targets]
        return loss(logits, targets) * factor

    return weigh


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights [classes] for ``weighted`` by which each class counts the same; their mean over the examples is 1."""
    counts = np.bincount(labels, minlength=classes)
    return (counts.sum() / (classes * np.maximum(counts, 1))).astype(np.float32)


def _call(model: linen.Module, variables: PyTree, batch: Batch, preprocess: Preprocess | None, **kwargs: Any) -> Any:
    """``model.apply`` on the images; on ``features``, where a batch has these, by ``model.from_pooled``."""
    if "features" in batch:
        return model.apply(variables, batch["features"], method="from_pooled", **kwargs)
    return model.apply(variables, batch["image"] if preprocess is None else preprocess(batch["image"]), **kwargs)


def loss_fn(model: linen.Module, loss: ExampleLoss = cross_entropy) -> Callable:
    """The training loss of ``train.Plan``.

    Args:
      loss: (logits [n, classes], targets) → [n].

    Returns:
      (variables, batch, key) → (mean loss, (new model state, sums)). ``batch["image"]`` is float, as augmentation left
      it; ``batch["features"]`` in its place goes to ``model.from_pooled`` (``transfer.Transfer``). The loss is taken
      on ``batch["target"]`` where that exists (mixed labels), else on ``batch["label"]``. That of auxiliary heads is
      added with the weights that the model's class gives in ``aux_weights``; the sums leave it out.
    """
    auxiliary: Mapping[str, float] = getattr(model, "aux_weights", {})

    def compute(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Any]]:
        state_names = [name for name in variables if name != "params"]
        (logits, endpoints), state = _call(
            model, variables, batch, None, train=True, rngs={"dropout": key}, mutable=state_names
        )
        target = batch.get("target", batch["label"])
        losses = loss(logits, target)
        total = losses.mean()
        for name, weight in auxiliary.items():
            if name in endpoints:  # a model may be built without them
                total += weight * loss(endpoints[name], target).mean()
        return total, (state, classification.sums(losses, logits, batch["label"]))

    return compute


def eval_fn(model: linen.Module, preprocess: Preprocess, loss: ExampleLoss = cross_entropy) -> Callable:
    """(variables, batch with uint8 images (or ``features``) and mask) → sums with the ``confusion`` matrix."""

    def compute(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits, _ = _call(model, variables, batch, preprocess, train=False)
        losses, mask = loss(logits, batch["label"]), batch["mask"]
        counts = classification.confusion(logits, batch["label"], mask)
        return {**classification.sums(losses, logits, batch["label"], mask), "confusion": counts}

    return compute


def predict_fn(model: linen.Module, preprocess: Preprocess) -> Callable:
    """(variables, batch with uint8 images) → probabilities float32 [n, classes]."""

    def compute(variables: PyTree, batch: Batch) -> Array:
        logits, _ = model.apply(variables, preprocess(batch["image"]), train=False)
        return jax.nn.softmax(logits)

    return compute


class Outcome(NamedTuple):
    """What a model said of every example of a split, in the split's order.

    Attributes:
      labels: int [n].
      probabilities: float32 [n, classes].
      confusion: counts [classes, classes], row = true class.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    confusion: np.ndarray


def test(
    model: linen.Module,
    preprocess: Preprocess,
    loss: ExampleLoss,
    variables: PyTree,
    batches: Iterable[Batch],
    mesh: jax.sharding.Mesh,
) -> tuple[dict[str, float], Outcome]:
    """One pass over a split: its figures (``test/loss``, ``test/accuracy``, …) and everything the model said."""
    evaluate, predict = eval_fn(model, preprocess, loss), predict_fn(model, preprocess)

    def compute(variables: PyTree, batch: Batch) -> tuple:
        # XLA computes the logits, which both need, once; all outputs are whole on every process.
        return evaluate(variables, batch), batch["label"], predict(variables, batch), batch["mask"]

    step = train.make_eval_step(compute, mesh)
    results = [jax.device_get(step(variables, sharding.shard_batch(batch, mesh))) for batch in batches]
    totals = train.add_up([sums for sums, *_ in results])
    labels, probabilities, mask = (np.concatenate(parts) for parts in list(zip(*results, strict=True))[1:])
    outcome = Outcome(labels[mask > 0], probabilities[mask > 0], totals["confusion"])
    return classification.figures(totals, "test/"), outcome


def pictures(directory: Path, source: Source, outcome: Outcome, params: PyTree, transform: Transform | None) -> None:
    """confusion.png, mistakes.png and, if the first convolution sees an image, filters.png, in ``directory``."""
    plot.save(plot.confusion(outcome.confusion, source.classes), directory / "confusion.png")
    predicted = outcome.probabilities.argmax(-1)
    wrong = np.flatnonzero(outcome.labels != predicted)
    worst = wrong[np.argsort(-outcome.probabilities[wrong, predicted[wrong]], kind="stable")][:25]
    images = [source[int(index)]["image"] for index in worst]
    images = images if transform is None else [transform(image) for image in images]
    chosen = (outcome.labels[worst], predicted[worst], outcome.probabilities[worst])
    plot.save(plot.mistakes(np.array(images), *chosen, source.classes), directory / "mistakes.png")
    kernels = (np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 4)
    first = next((kernel for kernel in kernels if kernel.shape[2] in (1, 3) and kernel.shape[0] > 1), None)
    if first is not None:
        plot.save(plot.filters(first), directory / "filters.png")
