"""What every network costs: parameters, multiply-adds, memory, beside the accuracy published for it.

    python experiments/costs.py                          # all networks, about 1 min on 2 CPU cores
    python experiments/costs.py --layers resnet50        # also that network layer by layer
    python experiments/costs.py --models vgg16 resnet50 --image-size 448 --batch 32
    python experiments/costs.py --smoke                  # three networks, a few seconds

Nothing is trained, downloaded or computed but sums, and the same command writes the same files: costs.csv,
layers_NAME.csv, accuracy.png and summary.json. To expect: the chapter's example, 15,200 parameters, 225 million
multiplications, 12 MB for an image and 1.2 GB for 100; its exercise 2, 903,400 parameters, 12.6 MB to predict and
565.6 MB to train with 50 images; ResNet-50, 25,557,032 parameters and 4.09 GMACs at 224×224.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import tyro

from cnnjax import models, nn, plot, report, summary
from cnnjax.types import Array, UserError


@dataclass(frozen=True)
class Config:
    """Which networks, for which images."""

    run_dir: Path = Path("runs/costs")
    """Where tables, picture and figures go."""
    models: tuple[str, ...] = ()
    """Names of networks; empty: all."""
    image_size: int | None = None
    """Side of the square images, pixels; None: the paper's of each network."""
    batch: int = 1
    """Images at a time."""
    layers: str | None = None
    """Name of a network to show layer by layer."""
    smoke: bool = False
    """Three networks that are quick, whatever --models says, to see that it works."""


_SMOKE = ("alexnet_torchvision", "lenet5", "vgg16")

# Name → (top-1, top-5, source), % of ImageNet's validation images, one model; one crop where not said otherwise. Of the
# networks that are missing no figure is known for just these layers.
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
    """Convolutions with zero padding, one after the other."""

    maps: tuple[int, ...]
    kernel_size: int
    strides: int

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        for i, maps in enumerate(self.maps):
            x = nn.Conv(maps, self.kernel_size, strides=self.strides, name=f"conv{i + 1}")(x)
        return x, {"last": x}


def chapter_rows() -> list[dict[str, Any]]:
    """What the text says of memory, and the answer to its exercise 2, beside what comes out here; MB are 10⁶ bytes.

    The exercise's image has lost its size in the text; it is 200×300.
    """
    layer = Convolutions((200,), 5, 1)
    one, hundred = (summary.cost(layer, (n, 150, 100, 3)) for n in (1, 100))
    net = Convolutions((100, 200, 400), 3, 2)
    predict, train = (summary.cost(net, (n, 200, 300, 3)) for n in (1, 50))
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
    return [{"of": of, "figure": figure, "chapter": text, "here": here} for of, figure, text, here in rows]


def image_shape(config: Config, model: Any) -> tuple[int, int, int]:
    """Height, width and channels of what the network is given."""
    size = config.image_size
    return model.image_shape if size is None else (size, size, model.image_shape[2])


def cost_of(config: Config, name: str) -> summary.Cost:
    """Of the network called ``name``; UserError, naming it, if the images do not suit it."""
    model = models.create(name)
    try:
        return summary.cost(model, (config.batch, *image_shape(config, model)))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def row(name: str, cost: summary.Cost) -> dict[str, Any]:
    """One line of costs.csv; accuracies that are not known, or are of another image size, stay empty."""
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
    """The same line for the terminal, in millions."""
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
    """Prints one network layer by layer, and writes it."""
    report.table(f"{name}: bytes are what training keeps", summary.rows(cost))
    summary.to_csv(cost, folder / f"layers_{name}.csv")


def main(config: Config) -> dict[str, float]:
    """Prints and writes the tables, the picture and the summary; returns the summary."""
    report.check_ranges(config, above_zero=("batch", "image_size"))
    names = _SMOKE if config.smoke else config.models or tuple(models.names())
    if len(set(names)) < len(names):
        raise UserError(f"--models takes different names, got {' '.join(names)}")
    # What is unknown or does not take the images is refused before anything is written.
    costs = {name: cost_of(config, name) for name in (*names, *([config.layers] if config.layers else []))}
    config.run_dir.mkdir(parents=True, exist_ok=True)
    report.write_json(config.run_dir / "config.json", report.as_dict(config))
    chapter = chapter_rows()
    lines = [line | {column: f"{line[column]:9,.1f}" for column in ("chapter", "here")} for line in chapter]
    report.table("the chapter's figures", lines)
    if config.layers is not None:
        write_layers(config.layers, costs[config.layers], config.run_dir)
    rows = [row(name, costs[name]) for name in names]
    report.table(f"networks; tables and picture in {config.run_dir}", [shown(line) for line in rows])
    summary.write_csv(rows, config.run_dir / "costs.csv")
    if points := accuracy_points(rows):
        title = "published accuracy against multiply-adds; area: parameters"
        figure = plot.bubbles(points, "10⁹ multiply-adds per image", "top-1 accuracy on ImageNet, %", title)
        plot.save(figure, config.run_dir / "accuracy.png")
    else:
        (config.run_dir / "accuracy.png").unlink(missing_ok=True)  # of an earlier run
    figures = {f"chapter/{line['of']}, {line['figure']}": line["here"] for line in chapter}
    for line in rows:
        figures |= {f"{line['model']}/{key}": line[key] for key in ("parameters", "macs", "infer_bytes", "train_bytes")}
    report.write_json(config.run_dir / "summary.json", figures)
    return figures


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
