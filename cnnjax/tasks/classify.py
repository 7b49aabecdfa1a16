"""Image classification for any model that returns ``(logits, endpoints)``: losses, evaluation, prediction, figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from cnnjax import plot
from cnnjax.data.sources import Source
from cnnjax.metrics import classification
from cnnjax.tasks import Prepare
from cnnjax.types import Array, Batch, Example, Key, Picture, Prediction, PyTree, Rows, Sums, Task

ExampleLoss = Callable[[Array, Array], Array]
"""(logits [n, classes], labels [n] or distributions [n, classes]) → losses [n]."""

USUAL = 5  # classes that are named of an image


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
    """Each example's loss times the weight of its class, [classes]; for mixed labels the mean of their weights."""
    if weights is None:
        return loss

    def weigh(logits: Array, targets: Array) -> Array:
        factor = targets @ weights if targets.ndim == 2 else jnp.asarray(weights)[targets]
        return loss(logits, targets) * factor

    return weigh


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights [classes] for ``weighted`` that make all classes count the same; their mean over the examples is 1."""
    counts = np.bincount(labels, minlength=classes)
    return (counts.sum() / (classes * np.maximum(counts, 1))).astype(np.float32)


def network(create: Callable[..., linen.Module], classes: Sequence[str]) -> linen.Module:
    """Model with a head of its own for ``classes``."""
    return create(num_classes=len(classes))


def task(
    model: linen.Module,
    prepare: Prepare,
    classes: Sequence[str],
    *,
    loss: ExampleLoss = cross_entropy,
    eval_loss: ExampleLoss = cross_entropy,
) -> Task:
    """Classification by ``model``.

    Batches have ``image`` (uint8 [n, h, w, c]; float in training, as augmentation left it) and ``label`` int32 [n]; in
    training ``target`` in its place, distributions [n, classes], where labels are mixed. ``features`` in place of
    ``image`` go to ``model.from_pooled`` (see ``tasks.transfer``).

    Args:
      loss: loss that training minimizes. Auxiliary heads add theirs with the weights of ``model.aux_weights``.
      eval_loss: loss that evaluation reports.
    """

    def predict(variables: PyTree, images: Array) -> dict[str, Array]:
        logits, _ = model.apply(variables, prepare(images), train=False)
        return {"probabilities": jax.nn.softmax(logits)}

    return Task(
        loss_fn=_loss_fn(model, loss),
        eval_fn=_eval_fn(model, prepare, eval_loss),
        figures=figures,
        predict=predict,
        describe=lambda prediction, most: {"predictions": top(prediction["probabilities"], classes, most or USUAL)},
        draw=lambda example, prediction: draw(example, prediction, classes),
        best="accuracy",
    )


def _call(model: linen.Module, variables: PyTree, batch: Batch, prepare: Prepare | None, **kwargs: Any) -> Any:
    """``model.apply`` on the images, or ``model.from_pooled`` on the features where a batch has these."""
    if "features" in batch:
        return model.apply(variables, batch["features"], method="from_pooled", **kwargs)
    return model.apply(variables, batch["image"] if prepare is None else prepare(batch["image"]), **kwargs)


def _loss_fn(model: linen.Module, loss: ExampleLoss) -> Callable:
    def compute(variables: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[PyTree, Sums]]:
        state_names = [name for name in variables if name != "params"]
        (logits, endpoints), state = _call(
            model, variables, batch, None, train=True, rngs={"dropout": key}, mutable=state_names
        )
        target = batch.get("target", batch["label"])
        losses = loss(logits, target)
        total = losses.mean()
        for name, weight in model.aux_weights.items():
            if name in endpoints:  # a model may be built without them
                total += weight * loss(endpoints[name], target).mean()
        return total, (state, classification.sums(losses, logits, batch["label"]))

    return compute


def _eval_fn(model: linen.Module, prepare: Prepare, loss: ExampleLoss) -> Callable:
    def compute(variables: PyTree, batch: Batch) -> tuple[Sums, Rows]:
        logits, _ = _call(model, variables, batch, prepare, train=False)
        label, mask = batch["label"], batch["example_mask"]
        losses = loss(logits, label)
        counts = classification.confusion(logits, label, mask)
        sums = {**classification.sums(losses, logits, label, mask), "confusion": counts}
        rows = {
            "label": label,
            "predicted": logits.argmax(-1),
            "confidence": jax.nn.softmax(logits).max(-1),
            "rank": classification.ranks(logits, label),
            "loss": losses,
        }
        return sums, rows

    return compute


def figures(sums: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``loss``, ``accuracy``, ``top5`` where there are more than 5 classes, and with rows ``calibration_error``."""
    found = classification.figures(sums)
    if rows:
        bins = classification.calibration(rows["confidence"], rows["predicted"] == rows["label"])
        found["calibration_error"] = classification.calibration_error(bins)
    return found


def named(text: str) -> tuple[str, str]:
    """(WordNet id, name) for a text such as "n01440764 tench", ("", text) for others."""
    wordnet = re.fullmatch(r"(n\d{8}) (.*)", text)
    return ("", text) if wordnet is None else (wordnet[1], wordnet[2])


def top(probabilities: Array, classes: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The likeliest classes of one image: ``name``, ``score``, and ``wnid`` where a name begins with a WordNet id."""
    probabilities = np.asarray(probabilities)
    found = []
    for place in np.argsort(-probabilities, kind="stable")[:most]:
        wnid, name = named(classes[place])
        found.append({**({"wnid": wnid} if wnid else {}), "name": name, "score": float(probabilities[place])})
    return found


def draw(example: Example, prediction: Prediction, classes: Sequence[str]) -> Picture:
    """Image under its likeliest classes, and under its true class where the example has a label."""
    lines = [f"{each['name'][:26]} {each['score']:.0%}" for each in top(prediction["probabilities"], classes, 5)]
    truth = [f"is {classes[int(example['label'])]}"] if "label" in example else []
    return Picture(example["image"], "\n".join(truth + lines))


def pictures(
    source: Source, sums: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], params: PyTree
) -> dict[str, Callable[[], plot.Figure]]:
    """File name → function that draws confusion, worst mistakes, calibration or the filters of a first layer.

    Args:
      source: images that were evaluated, each of the shape that the network takes.
      sums: totals of the evaluation.
      rows: a row for each image of ``source``.
      params: parameters of the network.
    """

    def mistakes() -> plot.Figure:
        wrong = np.flatnonzero(rows["label"] != rows["predicted"])
        worst = wrong[np.argsort(-rows["confidence"][wrong], kind="stable")][:25]
        images = [source[int(index)]["image"] for index in worst]
        label, predicted, confidence = (rows[name][worst] for name in ("label", "predicted", "confidence"))
        return plot.mistakes(images, label, predicted, confidence, source.classes)

    drawings: dict[str, Callable[[], plot.Figure]] = {
        "confusion.png": lambda: plot.confusion(sums["confusion"], source.classes),
        "mistakes.png": mistakes,
        "calibration.png": lambda: plot.reliability(
            classification.calibration(rows["confidence"], rows["predicted"] == rows["label"])
        ),
    }
    kernels = (np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 4)
    # A depthwise kernel has one input channel, too, but sees no image of three.
    channels = source[0]["image"].shape[-1]
    first = next((kernel for kernel in kernels if kernel.shape[2] == channels and kernel.shape[0] > 1), None)
    if first is not None:
        drawings["filters.png"] = lambda: plot.filters(first)
    return drawings
