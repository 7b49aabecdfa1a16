"""Trained networks in use: kept in their run folder, loaded again, exported for programs without this code."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cnnjax import atomic, models, pretrained, tasks, weights
from cnnjax.data import preparation, transforms
from cnnjax.data.formats.images import decode
from cnnjax.models.detection import darknet
from cnnjax.tasks import transfer
from cnnjax.types import Array, PyTree, Task, UserError
from cnnjax.weights.hub.labels import class_names

CARD, WEIGHTS = "model.json", "model.safetensors"
_RENAMED = {"box_maps": "box_features"}  # fields of heads in cards of older runs


@dataclass(frozen=True)
class Card:
    """Everything it takes to use a network, beside its weights; in a run folder it is model.json."""

    task: str
    """Name of a module of ``cnnjax.tasks``."""
    model: str
    """Name of the model, one of ``models.names()``; where the task puts a head on a base, the base."""
    fields: Mapping[str, Any]
    """Fields for ``models.create``; ``dtype`` by its name."""
    head: Mapping[str, Any]
    """Fields of the module around the base."""
    classes: tuple[str, ...]
    """Names of the classes; ImageNet's, which are not unique, have the WordNet ids before them."""
    preprocess: pretrained.Preprocess
    image_size: int
    """Height and width in pixels."""
    channels: int
    """1 or 3."""
    fit: preparation.Fit
    """Way in which an image becomes a square: see ``preparation.geometry``."""
    resize: int
    """Pixels of the shorter side before the center is cut out, with crop."""
    resample: preparation.Resample
    size: tuple[int, int] | None = None
    """Height and width in pixels where images are no squares of ``image_size``, with the fit pad."""
    origin: str | None = None
    """Run that training went on from, and what was taken of it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's images."""
        return (*(self.size or (self.image_size, self.image_size)), self.channels)

    def transform(self) -> transforms.Geometric:
        """Transform of an example of any size to ``shape``."""
        return transforms.fitted(self.fit, self.size or self.image_size, self.resize, self.resample)

    def pixels(self, images: Sequence[str | Path | Array]) -> np.ndarray:
        """Image files and arrays, of any size → uint8 [n, *shape], as training and predict.py prepare images.

        Args:
          images: paths, or arrays [h, w] or [h, w, 1, 3 or 4 with alpha]: uint8, uint16 of 0 … 65535, or floats of
            0 … 1.

        Raises:
          CorruptImageError: a file that cannot be read.
          UserError: no image, or an array of another shape, type or range.
        """
        if not len(images):
            raise UserError("no images are given")
        return np.stack([self._pixels(each, place) for place, each in enumerate(images)])

    def _pixels(self, image: Any, place: int) -> np.ndarray:
        if isinstance(image, str | Path):
            pixels = decode(Path(image).expanduser(), self.channels, image, upright=True)
        elif isinstance(image, Array):
            try:
                pixels = preparation.from_array(np.asarray(image), self.channels)
            except ValueError as error:
                raise UserError(f"image {place}: {error}") from error
        else:
            raise UserError(f"image {place}: a path or an array is expected, got {type(image).__name__}")
        return self.transform()({"image": pixels})["image"]

    def prepare(self, images: Array) -> Array:
        """uint8 [n, h, w, c] → what the model takes."""
        return pretrained.prepare(images, self.preprocess)

    def module(self, create: Callable[..., linen.Module] = models.create) -> linen.Module:
        """Network without weights; ``create`` makes its model from the name and the fields."""
        fields = dict(self.fields)
        if isinstance(fields.get("dtype"), str):
            fields["dtype"] = jnp.dtype(fields["dtype"])
        make = functools.partial(create, self.model, **fields)
        return tasks.named(self.task).network(make, self.classes, **self.head)

    def make_task(self, model: linen.Module, **options: Any) -> Task:
        """Task of the network; ``options`` are for training."""
        return tasks.named(self.task).task(model, self.prepare, self.classes, **options)


class Served(NamedTuple):
    """Network, ready to be called."""

    card: Card
    model: linen.Module
    variables: PyTree

    @property
    def task(self) -> Task:
        """Task of the network, to predict, evaluate, describe and draw."""
        return self.card.make_task(self.model)

    def predict(self, variables: PyTree, images: Array) -> dict[str, Array]:
        """Prediction for uint8 [n, *card.shape]; pass ``self.variables``, so that a jit does not embed them.

        ``card.pixels`` makes such images of files, and of arrays of other sizes and types.

        Returns:
          Arrays [n, …] of the task, such as ``probabilities`` float32 [n, classes] and, of a localizer, ``boxes``
          float32 [n, 4], xyxy in pixels.

        Raises:
          UserError: images of another shape or type.
        """
        expected = self.card.shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise UserError(
                f"images are expected as uint8 [n, {', '.join(map(str, expected))}], got {images.dtype} "
                f"{list(images.shape)}: card.pixels(images) makes them"
            )
        return self.task.predict(variables, images)


def of_published(network: pretrained.Network, fit: pretrained.Resize | None = None) -> Served:
    """Published network with its own head; ``fit`` as for `published_card`."""
    assert isinstance(network.entry, weights.Published)
    return Served(published_card(network.entry, fit), network.model, network.variables)


def published_card(entry: weights.Published, fit: pretrained.Resize | None = None) -> Card:
    """Card of a published network with its own head; ``fit`` None: the publisher's, crop or, of a detector, squeeze."""
    fit = fit or ("crop" if entry.task == "classify" else "squeeze")
    return card(entry, entry.task, fit, class_names(entry.class_order))


def darknet_card(cfg: Path, names: Path) -> Card:
    """Card of the network of a Darknet ``.cfg`` file; ``names`` has the name of a class in each line.

    Raises:
      UserError: a file cannot be read, its network does not take squares, or the numbers of classes differ.
    """
    model = darknet.read(cfg)
    height, width, channels = model.image_shape
    if height != width or channels not in (1, 3):
        raise UserError(f"{cfg}: images are squares with 1 or 3 channels here, not {height} × {width} × {channels}")
    try:
        classes = [line.strip() for line in names.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{names} has no names of classes, one in a line: {error}") from error
    if len(classes) != model.num_classes:
        raise UserError(f"{names} has {len(classes)} names, but the network of {cfg} has {model.num_classes} classes")
    return Card(
        task="detect" if model.grids else "classify",
        model=cfg.stem,
        fields={},
        head={},
        classes=tuple(classes),
        preprocess="unit",
        image_size=height,
        channels=channels,
        fit="squeeze",
        resize=height,
        resample="linear",
    )


def of_darknet(cfg: Path, file: Path, names: Path) -> Served:
    """Network of Darknet's files, see ``darknet_card``; UserError where they do not fit."""
    return Served(darknet_card(cfg, names), *darknet.load(cfg, file))


def card(
    entry: pretrained.Entry,
    task: str,
    fit: preparation.Fit,
    classes: Sequence[str],
    head: Mapping[str, Any] | None = None,
) -> Card:
    """Card of a network with the preparation of a published one; ``head`` has fields of the module around the base."""
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
    """Writes model.safetensors, then model.json, so that ``load`` finds no card without weights."""
    weights.save(folder / WEIGHTS, served.variables, served.model)
    if jax.process_index() == 0:
        atomic.write_json(folder / CARD, asdict(served.card))


def load_card(folder: Path) -> Card:
    """Card of the network that a run has trained.

    Raises:
      UserError: the run has not ended, or the card is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        cure = "a run leaves it when its training has ended: start it again with the same command"
        raise UserError(f"{path}: no such file; {cure if folder.is_dir() else 'there is no such run folder'}")
    try:
        content = dict(json.loads(path.read_text()))
        head = {_RENAMED.get(name, name): value for name, value in content["head"].items()}
        size = tuple(content["size"]) if content.get("size") else None
        found = Card(**{**content, "head": head, "classes": tuple(content["classes"]), "size": size})
        found.module()
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or of another version ({error}): start the run again, it ends at once"
        ) from error
    return found


def load(folder: Path) -> Served:
    """Network that a run has trained.

    Raises:
      UserError: the run has not ended, or its files are damaged.
    """
    known = load_card(folder)
    model = known.module()
    return Served(known, model, weights.load(folder / WEIGHTS, model, image_size=known.shape))


def load_variables(folder: Path, model: linen.Module, shape: tuple[int, int, int]) -> PyTree:
    """Variables for ``model`` that a run has kept or, where it has not ended, those of its newest checkpoint.

    Args:
      shape: height, width and channels of the model's images.

    Raises:
      UserError: there are none, or they are damaged or of another model.
    """
    kept = folder / WEIGHTS
    return weights.load(kept if kept.exists() else folder, model, image_size=shape)


def base(folder: Path) -> pretrained.Network:
    """Network that a run has trained, without its top, for transfer learning.

    Raises:
      UserError: the run has not ended, its files are damaged, it does not take RGB images, or knows no classes.
    """
    known = load_card(folder)
    if known.channels != 3:
        raise UserError(f"the network of {folder} takes images with 1 channel: a base for photos takes 3")
    model = known.module()
    if not hasattr(model, "num_classes"):
        raise UserError(
            f"the network of {folder} knows no classes ({known.task}): a base is a classifier, or stands on one"
        )
    if hasattr(model, "base"):
        return pretrained.Network(known, model.base, transfer.base_variables(load(folder).variables))
    headless = model.clone(num_classes=None)
    variables = load_variables(folder, headless, known.shape)
    return pretrained.Network(known, headless, variables)


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(served: Served, path: Path, platforms: Sequence[str] = PLATFORMS) -> None:
    """Writes a program with its weights that JAX runs without this package, and a JSON file that describes its use.

    ``jax.export.deserialize(path.read_bytes()).call(images)`` takes uint8 [n, s, s, c], n of any size, and returns what
    ``Served.predict`` does. It is StableHLO: convolutions are XLA's own on all platforms.

    Args:
      path: file of the program; the JSON file has its name with the suffix .json.
      platforms: platforms on which it can run.
    """
    known = served.card
    batch = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((*batch, *known.shape), np.uint8)
    program = jax.jit(lambda images: served.predict(served.variables, images))
    exported = jax.export.export(program, platforms=tuple(platforms))(images)
    about = {
        "takes": "images, RGB or grey: uint8 [n, height, width, channels], of image_size",
        "gives": {name: f"{x.dtype} {x.shape}" for name, x in _named(exported)},
        **{name: getattr(known, name) for name in ("classes", "channels", "fit", "resize", "resample")},
        "image_size": known.size or known.image_size,
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    atomic.write_bytes(path, bytes(exported.serialize()))
    atomic.write_json(path.with_suffix(".json"), about)


def _named(exported: jax.export.Exported) -> list[tuple[str, Any]]:
    tree = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return list(tree.items())
