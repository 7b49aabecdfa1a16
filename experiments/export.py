"""Exports a network as a program with its weights, which JAX runs without this package, on batches of any size.

    python experiments/export.py --run runs/flowers
    python experiments/export.py --weights resnet50.keras
    python experiments/export.py --smoke                                # random weights, nothing is downloaded

The run folder gets network.stablehlo, network.json (classes, how images are prepared) and use_exported.py, which
predicts for photos with them and needs only jax, NumPy and Pillow; it takes seconds. At the end the exported program is
compared with the network.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.export
import numpy as np
import tyro

from cnnjax import atomic, cli, experiment, report, serving, settings, text
from cnnjax.data import preparation
from cnnjax.types import UserError


@dataclass(frozen=True)
class Config:
    """Network, and the platforms to run it on."""

    platforms: tuple[str, ...] = serving.PLATFORMS
    """Platforms to run on: some of cpu, cuda, rocm, tpu."""

    network: tyro.conf.OmitArgPrefixes[settings.Network] = settings.Network()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


TOLERANCE = 1e-4  # for probabilities: on CPUs, the forms of cnnjax.ops add up in another order than XLA's own


def resolve(config: Config) -> Config:
    """Checks the settings at once, and makes ``--smoke`` small."""
    if not config.platforms or not set(config.platforms) <= set(serving.PLATFORMS):
        given = ", ".join(config.platforms) or "none"
        raise UserError(f"--platforms are of {', '.join(serving.PLATFORMS)}; got {given}")
    if config.output.smoke and not config.network.run:
        config = settings.change(config, weights=settings.SMOKE, file=None)
    return experiment.resolve(config, f"export-{config.network.title}")


def main(config: Config) -> dict[str, float]:
    """Exports, compares, prints the table; returns the summary."""
    config = resolve(config)
    if config.network.card(random=config.output.smoke).task == "super_resolve":
        raise UserError(
            f"{config.network.title} enlarges photos of any size, a program takes one: use predict.py --run"
        )
    served = config.network.load(random=config.output.smoke)
    with experiment.opened(config, {}) as run:
        path = run.dir / "network.stablehlo"
        if not run.writes:
            return {}
        serving.export(served, path, config.platforms)
        atomic.write_bytes(run.dir / "use_exported.py", Path(preparation.__file__).read_bytes())
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
        "how to use it": f"python {text.shell(run.dir / 'use_exported.py')} {text.shell(path)} PHOTO",
    }
    report.table("exported", [{"": name, " ": value} for name, value in facts.items()])
    return summary


def runs_here(config: Config) -> bool:
    """True if the program is for this machine."""
    here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
    return bool(here & set(config.platforms))


def compare(served: serving.Served, path: Path) -> float:
    """Largest difference of an output between the program and the network, on noise.

    Raises:
      UserError: the difference is larger than rounding explains.
    """
    card = served.card
    images = np.random.default_rng(0).integers(0, 256, (3, *card.shape), np.uint8)
    found = jax.export.deserialize(bytearray(path.read_bytes())).call(images)
    expected = jax.jit(served.predict)(served.variables, images)
    # Boxes are in pixels: as shares of the image they have the magnitude of probabilities. Of detections and of pixels
    # only how sure they are is compared: rounding decides between two that are equally sure.
    scale, sure = {"boxes": max(card.shape)}, {"scores", "confidence"} & expected.keys()
    names = sure if {"valid", "segmentation"} & expected.keys() else expected.keys()
    differences = {name: np.abs(np.asarray(found[name]) - np.asarray(expected[name])).max() for name in names}
    difference = max(float(x) / scale.get(name, 1) for name, x in differences.items())
    if not difference <= TOLERANCE:
        raise UserError(f"{path} differs from the network by {difference:.1e}, which rounding does not explain")
    return difference


if __name__ == "__main__":
    cli.main(main, Config)
