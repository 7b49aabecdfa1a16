"""Names of the arrays in Keras' files: every key is ``layer/weight``.

The weights of a layer are ``kernel``, ``bias``; ``gamma``, ``beta``, ``moving_mean``, ``moving_variance``; or
``depthwise_kernel``, ``pointwise_kernel``. A layer of a model inside a model has only its own name.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax.types import UserError

Shape = tuple[int, ...]
_WEIGHTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "depthwise_kernel", "pointwise_kernel")
# Names before Keras 2.0, whose running_std is a variance.
_BEFORE = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}


class Layer(NamedTuple):
    """The name of a layer in a model's configuration; for a BatchNormalization, the weights that it has."""

    name: str
    scale: bool | None
    center: bool | None


def legacy(paths: Iterable[str]) -> dict[str, str]:
    """Key → path, for paths ``layer/name of the weight`` such as ``conv1/conv1/kernel:0``.

    Raises:
      ValueError: an array belongs to no layer, or two arrays have the same key.
    """
    keys = _unique((_legacy_key(path), path) for path in paths)
    # The only kernel of a depthwise layer is a depthwise_kernel in Keras 2 and a kernel in Keras 3.
    alone = {key: key.replace("/depthwise_", "/") for key in keys if _is_alone(key, keys)}
    return _unique((alone.get(key, key), path) for key, path in keys.items())


def _is_alone(key: str, keys: Mapping[str, str]) -> bool:
    layer, weight = key.rsplit("/", 1)
    return weight == "depthwise_kernel" and f"{layer}/pointwise_kernel" not in keys


def _legacy_key(path: str) -> str:
    outer, *_ = parts = path.split("/")
    if len(parts) < 2:
        raise ValueError(f"{path} belongs to no layer")
    weight = re.sub(r":\d+$", "", parts[-1])
    if weight not in _WEIGHTS:
        weight = re.sub(r"_\d+$", "", weight).removeprefix(f"{outer}_")
    # TensorFlow numbers the scopes of a model that it builds twice: conv1_1/kernel:0 in conv1.
    layer = outer if len(parts) == 2 or re.sub(r"_\d+$", "", parts[-2]) == outer else parts[-2]
    return f"{layer}/{_BEFORE.get(weight, weight)}"


def group(path: str) -> str:
    """The group of the layer that an array belongs to: ``layers/conv2d_1/vars/0`` → ``layers/conv2d_1``."""
    return path.rpartition("vars/")[0].rstrip("/")


def by_position(
    file: Path,
    shapes: Mapping[str, Shape],
    names: Mapping[str, str | None],
    layers: Mapping[str, Layer],
) -> dict[str, str]:
    """Key → path, for paths ``layers/conv2d_1/vars/0`` as Keras 3 writes them.

    Args:
      file: for messages.
      shapes: path → shape of the array.
      names: group → name of the layer; None where the file does not name it.
      layers: group → layer, from the configuration (``layers_of``), for names that the file lacks.

    Raises:
      UserError: nothing names a layer.
      ValueError: the arrays of a layer are not numbered from 0, or two have the same key.
    """
    members: dict[str, dict[int, str]] = defaultdict(dict)
    for path in shapes:
        members[group(path)][int(path.rpartition("/")[2])] = path
    by_name = {layer.name: layer for layer in layers.values()}
    pairs = []
    for where, paths in members.items():
        name = names[where] or (layers[where].name if where in layers else None)
        if name is None:
            raise UserError(
                f"{file} does not say which layer {where} is, as the first versions of Keras 3 did not: save the model "
                "as .keras, or with a newer Keras"
            )
        if sorted(paths) != list(range(len(paths))):
            raise ValueError(f"{where} has the arrays {sorted(paths)}")
        ordered = [paths[i] for i in range(len(paths))]
        weights = _weights(where, [shapes[path] for path in ordered], by_name.get(name))
        pairs += [(f"{name}/{weight}", path) for weight, path in zip(weights, ordered, strict=True)]
    return _unique(pairs)


def _weights(where: str, shapes: list[Shape], layer: Layer | None) -> list[str]:
    """Names of a layer's weights, from their order and their shapes."""
    count, vectors = len(shapes), sum(len(shape) == 1 for shape in shapes)
    if () in shapes:  # Normalization has a count
        return [str(i) for i in range(count)]
    if vectors == count and (count in (3, 4) or where.rpartition("/")[2].startswith("batch_normalization")):
        scale = count == 4 if layer is None or layer.scale is None else layer.scale
        center = count > 2 if layer is None or layer.center is None else layer.center
        names = ["gamma"] * scale + ["beta"] * center + ["moving_mean", "moving_variance"]
    else:
        names = ["kernel"] if count - vectors == 1 else ["depthwise_kernel", "pointwise_kernel"]
        names += ["bias"] * vectors
    # No model here has this kind of layer. No rule asks for a number, so the error lists these weights as left over.
    return names if len(names) == count else [str(i) for i in range(count)]


def layers_of(model: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """(Group in the file, layer) for a model and the models in it, from its ``config.json``."""
    counts: Counter[str] = Counter()
    for layer in model["config"]["layers"]:
        kind, config = _snake_case(layer["class_name"]), layer["config"]
        where = f"{prefix}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
        counts[kind] += 1
        yield where, Layer(str(config["name"]), config.get("scale"), config.get("center"))
        if "layers" in config:
            yield from layers_of(layer, f"{where}/")


def _snake_case(name: str) -> str:
    """The name of a group, from that of a class: SeparableConv2D → separable_conv2d."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The (key, path) pairs as a dict; ValueError if a key occurs twice."""
    keys: dict[str, str] = {}
    for key, path in pairs:
        if key in keys:
            raise ValueError(f"two arrays are {key}: {keys[key]} and {path}")
        keys[key] = path
    return keys
