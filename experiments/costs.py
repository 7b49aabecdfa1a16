"""Cost of every network: parameters, multiply-adds and memory, beside its published accuracy.

    python experiments/costs.py                          # all networks, about 1 min on 2 CPU cores
    python experiments/costs.py --layers resnet50        # also that network layer by layer
    python experiments/costs.py --models vgg16 resnet50 --image-size 448 --batch 32
    python experiments/costs.py --smoke                  # three networks, a few seconds

Nothing is trained or downloaded: networks are traced with shapes only, so a command writes the same files each time:
costs.csv, layers_NAME.csv, accuracy.png and summary.json. To expect: the chapter's example, 15,200 parameters, 225
million multiplications, 12 MB for an image and 1.2 GB for 100; its exercise 2, 903,400 parameters, 12.6 MB to predict
and 565.6 MB to train with 50 images; ResNet-50, 25,557,032 parameters and 4.09 GMACs at 224×224.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as linen
import jax
import tyro

from cnnjax import cli, experiment, models, nn, plot, report, settings, summary
from cnnjax.types import Array, UserError


@dataclass(frozen=True)
class Config:
    """Networks and their images."""

    models: tuple[str, ...] = ()
    """Names of networks; empty: all."""
    image_size: settings.Pixels | None = None
    """Side of the square images in pixels; None: the size in each network's paper."""
    batch: settings.PositiveInt = 1
    """Images per batch."""
    layers: str | None = None
    """Name of a network to show layer by layer."""

    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


_SMOKE = ("alexnet_torchvision", "lenet5", "vgg16")

# Name → (top-1, top-5, source), in % of ImageNet's validation images, of one model, on one crop unless the source says
# otherwise. For the missing networks no figure is published for exactly these layers.
# The rows of Hu et al., Szegedy et al., Krizhevsky et al. and Zeiler & Fergus were not yet checked against the papers.
_TORCHVISION = "torchvision, IMAGENET1K_V1"
_KERAS = "Keras applications"
_SE = "Hu et al. 2018, strides in the first 1×1"
PUBLISHED: dict[str, tuple[float | None, float, str]] = {
    "alexnet_torchvision": (56.5, 79.1, _TORCHVISION),
    "alexnet_two_tower": (59.3, 81.8, "Krizhevsky et al. 2012, Table 2, ten crops"),
    "googlenet": (None, 89.9, "Szegedy et al. 2015, Table 3"),
    "googlenet_bn": (69.8, 89.5, _TORCHVISION),
    "inception_resnet_v2": (80.3, 95.3, _KERAS),
    "inception_v3": (77.3, 93.5, _TORCHVISION),
    "inception_v4": (80.0, 95.0, "Szegedy et al. 2017, Table 2"),
    "mobilenet_v1": (70.4, 89.5, _KERAS),
    "mobilenet_v2": (71.9, 90.3, _TORCHVISION),
    "resnet18": (69.8, 89.1, _TORCHVISION),
    "resnet34": (73.3, 91.4, _TORCHVISION),
    "resnet50": (76.1, 92.9, _TORCHVISION),
    "resnet101": (77.4, 93.5, _TORCHVISION),
    "resnet152": (78.3, 94.0, _TORCHVISION),
    "resnet50_v1": (74.9, 92.1, _KERAS),
    "resnet101_v1": (76.4, 92.8, _KERAS),
    "resnet152_v1": (76.6, 93.1, _KERAS),
    "resnet50_v2": (76.0, 93.0, _KERAS),
    "senet154": (81.3, 95.5, "Hu et al. 2018"),
    "seresnet50": (76.7, 93.4, _SE),
    "seresnet101": (77.6, 93.9, _SE),
    "seresnet152": (78.4, 94.3, _SE),
    "vgg16": (71.6, 90.4, _TORCHVISION),
    "vgg19": (72.4, 90.9, _TORCHVISION),
    "xception": (79.0, 94.5, "Chollet 2017, Table 1"),
    "zfnet": (61.6, 83.5, "Zeiler & Fergus 2014, Table 2, ten crops"),
}


class Convolutions(linen.Module):
    """Convolutions with zero padding, one after the other; ``features`` of each."""

    features: tuple[int, ...]
    kernel_size: int
    strides: int

    aux_weights: ClassVar[Mapping[str, float]] = {}

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        for i, features in enumerate(self.features):
            x = nn.Conv(features, self.kernel_size, strides=self.strides, name=f"conv{i + 1}")(x)
        return x, {"last": x}


def chapter_rows() -> list[dict[str, Any]]:
    """The chapter's figures of memory and of its exercise 2, beside those computed here; an MB is 10⁶ bytes.

    The exercise's images are 200×300 pixels.
    """
    layer = Convolutions((200,), 5, 1)
    one, hundred = (summary.cost(layer, (n, 150, 100, 3)) for n in (1, 100))
    exercise = Convolutions((100, 200, 400), 3, 2)
    predict, train = (summary.cost(exercise, (n, 200, 300, 3)) for n in (1, 50))
    rows = [
        ("convolution", "parameters", 15_200, one.params),
        ("convolution", "million multiplications", 225, one.macs / 1e6),
        ("convolution", "MB of output", 12, one.layers[0].bytes / 1e6),
        ("convolution", "MB of output, 100 images", 1_200, hundred.layers[0].bytes / 1e6),
        ("exercise 2", "parameters", 903_400, predict.params),
        ("exercise 2", "MB to predict, 1 image", 12.6, predict.infer_bytes / 1e6),
        ("exercise 2", "MB of feature maps, 50 images", 526, sum(layer.bytes for layer in train.layers) / 1e6),
        ("exercise 2", "MB to train, 50 images", 565.6, train.train_bytes / 1e6),
    ]
    return [{"network": net, "figure": figure, "chapter": text, "here": here} for net, figure, text, here in rows]


def image_shape(config: Config, model: Any) -> tuple[int, int, int]:
    """Height, width and channels of the network's images."""
    size = config.image_size
    return model.image_shape if size is None else (size, size, model.image_shape[2])


def cost_of(config: Config, name: str) -> summary.Cost:
    """Cost of the network called ``name``.

    Raises:
      UserError: the name is unknown, or the network does not take images of this size.
    """
    model = models.create(name)
    try:
        return summary.cost(model, (config.batch, *image_shape(config, model)))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def row(name: str, cost: summary.Cost) -> dict[str, Any]:
    """Row of costs.csv; an accuracy that is not known, or was measured at another image size, is left empty."""
    published = PUBLISHED if cost.shape[1:3] == models.create(name).image_shape[:2] else {}
    top1, top5, source = published.get(name, (None, None, ""))
    return {
        "model": name,
        "images": "×".join(map(str, cost.shape)),
        "parameters": cost.params,
        "macs": cost.macs,
        "infer_bytes": cost.infer_bytes,
        "train_bytes": cost.train_bytes,
        "top1": "" if top1 is None else top1,
        "top5": "" if top5 is None else top5,
        "source": source,
    }


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """Row of costs.csv for the terminal, in millions."""
    return {
        "model": row["model"],
        "M params": f"{row['parameters'] / 1e6:8.2f}",
        "GMACs": f"{row['macs'] / 1e9:6.2f}",
        "MB test": f"{row['infer_bytes'] / 1e6:7.1f}",
        "MB train": f"{row['train_bytes'] / 1e6:8.1f}",
        "top-1": str(row["top1"]),
        "top-5": str(row["top5"]),
    }


def accuracy_points(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Name → (GMACs per image, top-1, parameters) of the networks whose accuracy is known."""
    return {
        row["model"]: (row["macs"] / int(row["images"].split("×")[0]) / 1e9, row["top1"], row["parameters"])
        for row in rows
        if row["top1"] != ""
    }


def write_layers(name: str, cost: summary.Cost, folder: Path) -> None:
    """Prints and writes the table of one network's layers."""
    report.table(f"{name}: bytes are those of activations that training keeps", summary.rows(cost))
    summary.to_csv(cost, folder / f"layers_{name}.csv")


def main(config: Config) -> dict[str, float]:
    """Prints and writes the tables, the chart and the summary; returns the summary."""
    config = experiment.resolve(config, "costs")
    names = _SMOKE if config.output.smoke else config.models or tuple(models.names())
    if len(set(names)) < len(names):
        raise UserError(f"--models takes different names, got {' '.join(names)}")
    # Unknown names and unsuitable images are refused before anything is written.
    costs = {name: cost_of(config, name) for name in (*names, *([config.layers] if config.layers else []))}
    chapter, rows = chapter_rows(), [row(name, costs[name]) for name in names]
    figures = {f"chapter/{line['network']}, {line['figure']}": line["here"] for line in chapter}
    for line in rows:
        figures |= {f"{line['model']}/{key}": line[key] for key in ("parameters", "macs", "infer_bytes", "train_bytes")}
    with experiment.opened(config, {}) as run:
        lines = [line | {column: f"{line[column]:9,.1f}" for column in ("chapter", "here")} for line in chapter]
        report.table("the chapter's figures", lines)
        if not run.writes:
            return figures
        if config.layers is not None:
            write_layers(config.layers, costs[config.layers], run.dir)
        report.table(f"networks; tables and chart in {run.dir}", [shown(line) for line in rows])
        summary.write_csv(rows, run.dir / "costs.csv")
        run.finish(figures)
        if points := accuracy_points(rows):
            labels = "10⁹ multiply-adds per image", "top-1 accuracy on ImageNet, %"
            title = "published accuracy against multiply-adds; area: parameters"
            experiment.draw(run, {"accuracy.png": lambda: plot.bubbles(points, *labels, title)})
    return figures


if __name__ == "__main__":
    cli.main(main, Config)
