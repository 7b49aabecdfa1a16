"""Networks put to use: kept in their run folder, loaded again, exported for programs that have none of this code."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as linen
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cnnjax import report, weights
from cnnjax.data import host
from cnnjax.tasks import classify, localize, predict, transfer
from cnnjax.types import Array, PyTree, UserError
from cnnjax.weights.labels import imagenet_classes

CARD, WEIGHTS = "model.json", "model.safetensors"
Task = Literal["classify", "transfer", "localize"]
Create = Callable[..., linen.Module]
"""``models.create``."""


@dataclass(frozen=True)
class Card:
    """What it takes to use a network, beside its weights; in a run folder it is model.json."""

    task: Task
    """classify: the model has a head of its own; transfer, localize: it is the base of ``tasks``' modules."""
    model: str
    """A name of ``models.names()``."""
    fields: Mapping[str, Any]
    """Of ``models.create``; ``dtype`` by its name."""
    head: Mapping[str, Any]
    """Fields of the module around the base."""
    classes: tuple[str, ...]
    """Names; of ImageNet's, whose names are not unique, the WordNet ids before them."""
    preprocess: Literal["unit", "tf", "torch", "caffe"]
    """unit: pixels / 255; the others as ``weights.preprocess``."""
    image_size: int
    """Pixels, height and width."""
    channels: int
    """1 or 3."""
    fit: Literal["crop", "squeeze", "square", "center"]
    """How an image becomes a square: as ``predict.host_transform``, or ``host.center_crop``."""
    resize: int
    """Pixels of the shorter side before the centre is cut out, with crop."""
    resample: host.Resample

    def transform(self) -> host.Transform:
        """Image of any size → ``image_size`` square."""
        if self.fit == "center":
            return host.center_crop(self.image_size)
        return predict.host_transform(self, self.fit)

    def prepare(self, images: Array) -> Array:
        """uint8 [n, h, w, c] → what the model takes."""
        return classify.unit(images) if self.preprocess == "unit" else weights.preprocess(images, self.preprocess)

    def module(self, create: Create) -> linen.Module:
        """The network without its variables."""
        fields = {**self.fields}
        if "dtype" in fields:
            fields["dtype"] = jnp.dtype(fields["dtype"])
        if self.task == "classify":
            return create(self.model, num_classes=len(self.classes), **fields)
        around = {"transfer": transfer.Transfer, "localize": localize.Localizer}[self.task]
        return around(create(self.model, num_classes=None, **fields), len(self.classes), **self.head)


class Served(NamedTuple):
    """A network, ready to be called."""

    card: Card
    model: linen.Module
    variables: PyTree

    def predict(self, variables: PyTree, images: Array) -> dict[str, jax.Array]:
        """What the network says of uint8 [n, s, s, c]; ``variables`` are ``self.variables``, as an argument of a jit.

        Returns:
          ``probabilities`` float32 [n, classes]; of a localizer also ``boxes`` float32 [n, 4], xyxy in pixels.
        """
        batch = {"image": images}
        if self.card.task != "localize":
            return {"probabilities": classify.predict_fn(self.model, self.card.prepare)(variables, batch)}
        compute = localize.predict_fn(self.model, self.card.prepare, self.card.image_size)
        return dict(zip(("probabilities", "boxes"), compute(variables, batch), strict=True))


def of_published(network: predict.Network, fit: predict.Resize) -> Served:
    """A published network with its own head."""
    classes = [f"{wnid} {name}" for wnid, name in imagenet_classes()]
    return Served(card(network, "classify", fit, classes), network.model, network.variables)


def card(
    network: predict.Network,
    task: Task,
    fit: predict.Resize,
    classes: Sequence[str],
    head: Mapping[str, Any] | None = None,
) -> Card:
    """That of a network whose images are prepared as the published one's, ``head`` being around it."""
    entry = network.entry
    return Card(
        task=task,
        model=entry.model,
        fields=dict(entry.fields),
        head=dict(head or {}),
        classes=tuple(classes),
        preprocess=entry.preprocess,
        image_size=entry.image_size,
        channels=3,
        fit=fit,
        resize=entry.resize,
        resample=entry.resample,
    )


def save(folder: Path, served: Served) -> None:
    """Writes model.safetensors, and then model.json, so that ``load(folder, …)`` finds both or neither."""
    weights.save(folder / WEIGHTS, served.variables, served.model)
    if jax.process_index() == 0:
        report.write_json(folder / CARD, asdict(served.card))


def load(folder: Path, create: Create) -> Served:
    """The network that a run has trained.

    Raises:
      UserError: the run has not ended, or its files are damaged.
    """
    path = folder / CARD
    if not path.is_file():
        cure = "a run leaves it when its training has ended: start it again with the same command"
        raise UserError(f"{path}: no such file; {cure if folder.is_dir() else 'there is no such run folder'}")
    try:
        content = dict(json.loads(path.read_text()))
        known = Card(**{**content, "classes": tuple(content["classes"])})
        model = known.module(create)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or of another version ({error}): start the run again, it ends at once"
        ) from error
    shape = (known.image_size, known.image_size, known.channels)
    return Served(known, model, weights.load(folder / WEIGHTS, model, image_size=shape))


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(served: Served, path: Path, platforms: Sequence[str] = PLATFORMS) -> None:
    """Writes a program with its weights that JAX runs without this package, and beside it, as JSON, how to use it.

    ``jax.export.deserialize(path.read_bytes()).call(images)`` takes uint8 [n, s, s, c], n of any size, and returns what
    ``Served.predict`` does. It is StableHLO: convolutions are XLA's own on all platforms.

    Args:
      path: of the program; the JSON file has its name with the suffix .json.
      platforms: that it shall run on.
    """
    known = served.card
    batch = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((*batch, known.image_size, known.image_size, known.channels), np.uint8)
    program = jax.jit(lambda images: served.predict(served.variables, images))
    exported = jax.export.export(program, platforms=tuple(platforms))(images)
    about = {
        "takes": "images, RGB or grey: uint8 [n, image_size, image_size, channels]",
        "gives": {name: f"{x.dtype} {x.shape}" for name, x in _named(exported)},
        **{name: getattr(known, name) for name in ("classes", "image_size", "channels", "fit", "resize", "resample")},
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(exported.serialize())
    temporary.replace(path)
    report.write_json(path.with_suffix(".json"), about)


def _named(exported: jax.export.Exported) -> list[tuple[str, Any]]:
    tree = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return list(tree.items())
