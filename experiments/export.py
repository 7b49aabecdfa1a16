"""Exports a network as a program with its weights, which JAX runs without this package, batches being of any size.

    python experiments/export.py --run runs/flowers
    python experiments/export.py --weights resnet50.keras
    python experiments/export.py --smoke                                # random weights, nothing is downloaded

The run folder gets network.stablehlo and network.json (classes, how images are prepared); it takes seconds. What uses
them needs jax alone: see experiments/use_exported.py. The program is checked against the network before this ends.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.export
import numpy as np
import tyro

from cnnjax import models, report, sharding
from cnnjax.tasks import predict, serve
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """Which network, and what it shall run on."""

    run: Path | None = None
    """The folder of a run of flowers.py, localize.py or classify.py whose network to take in place of --weights."""
    weights: str = "resnet50.keras"
    """A tag of cnnjax.weights.published()."""
    file: Path | None = None
    """Has these weights; None: the cache, else they are downloaded."""
    resize: predict.Resize | None = None
    """How images are to be prepared: crop as the publisher does, squeeze, square. None: crop; with --run as in
    training."""
    platforms: tuple[str, ...] = serve.PLATFORMS
    """Of cpu, cuda, rocm, tpu."""
    run_dir: Path | None = None
    """Where results go; a new folder under runs/ if not given."""
    smoke: bool = False
    """A small network with random weights, to see that everything works."""


SMOKE = "mobilenet_v1_0.25_128.keras"
TOLERANCE = 1e-4  # of probabilities: on CPUs, the forms of cnnjax.ops add up in another order than XLA's own


def resolve(config: Config) -> Config:
    """Checks what can be checked at once."""
    if not config.platforms or not set(config.platforms) <= set(serve.PLATFORMS):
        raise UserError(f"--platforms are of {', '.join(serve.PLATFORMS)}; got {', '.join(config.platforms) or 'none'}")
    if config.run and (config.smoke or config.file or config.resize):
        raise UserError("--run has a network and its way of resizing: leave out --file, --resize and --smoke")
    config = replace(config, weights=SMOKE, file=None) if config.smoke else config
    name = config.run.resolve().name if config.run else config.weights
    return replace(config, run_dir=report.run_folder(config.run_dir, f"export-{name}"))


def load(config: Config) -> serve.Served:
    """The network."""
    if config.run:
        return serve.load(config.run, models.create)
    network = predict.network(config.weights, config.file, random=config.smoke)
    return serve.of_published(network, config.resize or "crop")


def main(config: Config) -> dict[str, float]:
    """Exports, compares, prints the table; returns the summary."""
    sharding.start()
    config = resolve(config)
    served = load(config)
    with report.Run(config.run_dir, config, {}) as run:
        path = config.run_dir / "network.stablehlo"
        serve.export(served, path, config.platforms)
        summary: dict[str, float] = {"bytes": path.stat().st_size}
        if runs_here(config):
            summary["largest_difference"] = compare(served, path)
        run.finish(summary)
    difference = summary.get("largest_difference")
    facts = {
        "network": str(path),
        "size": f"{summary['bytes'] / 1e6:.1f} MB",
        "runs on": " ".join(config.platforms),
        "largest difference": "not compared, this machine is none of these"
        if difference is None
        else f"{difference:.1e}",
        "how to use it": f"python experiments/use_exported.py {path} PHOTO",
    }
    report.table("exported", [{"": name, " ": value} for name, value in facts.items()])
    return summary


def runs_here(config: Config) -> bool:
    """Whether the program is for this machine."""
    here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
    return bool(here & set(config.platforms))


def compare(served: serve.Served, path: Path) -> float:
    """The largest difference of a probability between the program and the network, on noise.

    Raises:
      UserError: it is larger than rounding explains.
    """
    card = served.card
    shape = (3, card.image_size, card.image_size, card.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = jax.export.deserialize(bytearray(path.read_bytes())).call(images)["probabilities"]
    expected = jax.jit(served.predict)(served.variables, images)["probabilities"]
    difference = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    if not difference <= TOLERANCE:
        raise UserError(f"{path} differs from the network by {difference:.1e}, which rounding does not explain")
    return difference


if __name__ == "__main__":
    report.main(lambda: main(tyro.cli(Config)))
