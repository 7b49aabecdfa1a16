"""Settings of networks: the base of transfer learning, the network that a tool uses."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cnnjax import pretrained, serving
from cnnjax.settings.fields import MAY_DIFFER, Factor, Fraction
from cnnjax.tasks import transfer
from cnnjax.types import UserError
from cnnjax.weights import published


@dataclass(frozen=True)
class Base:
    """Network that transfer learning starts from: a published one, or one that a run has trained."""

    weights: str
    """Tag of cnnjax.weights.published(): the base, its weights, and how its images are prepared. Or the folder of a
    finished run, whose network is taken without its top."""
    file: Annotated[Path | None, MAY_DIFFER] = None
    """File with these weights; None: the cache, else they are downloaded."""
    norm_momentum: Fraction | None = None
    """Momentum of BatchNorm's running statistics; None: the publisher's or, where an epoch has few steps, less."""

    @property
    def run(self) -> Path | None:
        """Folder of the run that ``weights`` names, if it does."""
        folder = Path(self.weights).expanduser()
        return folder if self.weights not in published() and (folder.is_dir() or os.sep in self.weights) else None

    @property
    def name(self) -> str:
        """Tag of the weights, or name of the run."""
        return self.run.resolve().name if self.run else self.weights

    def entry(self) -> pretrained.Entry:
        """Facts about the network.

        Raises:
          UserError: no such network, or a run with ``file``.
        """
        if self.run and self.file:
            raise UserError(f"--weights {self.weights} is a run, which has its weights: leave out --file")
        if self.run:
            return serving.load_card(self.run)
        entry = pretrained.published(self.weights)
        if entry.task != "classify":
            raise UserError(f"--weights {entry.tag} is a detector: a base is a classifier, such as darknet53.darknet")
        return entry

    def network(self, *, random: bool = False) -> pretrained.Network:
        """Network without its top; ``random`` takes fresh weights."""
        self.entry()
        if self.run:
            return serving.base(self.run)
        return pretrained.network(self.weights, self.file, random=random, num_classes=None)

    def tuned(self, network: pretrained.Network, per_epoch: int) -> pretrained.Network:
        """Copy of ``network`` with the momentum of BatchNorm for ``per_epoch`` steps in an epoch.

        Raises:
          UserError: the momentum is given, and the network has no BatchNorm.
        """
        momentum = self.norm_momentum
        if momentum is None:
            momentum = transfer.norm_momentum(network.model, per_epoch)
        return network._replace(model=transfer.with_norm_momentum(network.model, momentum))


@dataclass(frozen=True)
class TestTime:
    """Ways in which predictions see an image more than once (test-time augmentation): each costs its time."""

    test_mirrored: bool = False
    """See the mirror image, too: probabilities of pixels are averaged, boxes suppressed together."""
    test_upside_down: bool = False
    """See the image mirrored top to bottom, too."""
    test_scales: tuple[Factor, ...] = (1.0,)
    """Factors of the size at which a segmenter sees an image, such as 0.75 1 1.25; probabilities are averaged."""

    def options(self, task: str) -> dict[str, Any]:
        """Options of ``tasks.NAME.task``.

        Raises:
          UserError: the task called ``task`` has no such options.
        """
        options: dict[str, Any] = {}
        if axes := tuple(axis for axis, on in ((1, self.test_upside_down), (2, self.test_mirrored)) if on):
            options["mirrored"] = axes
        if self.test_scales != (1.0,):
            options["scales"] = self.test_scales
        known = {"segment": {"mirrored", "scales"}, "detect": {"mirrored"}}.get(task, set())
        if unknown := options.keys() - known:
            flags = {"mirrored": "--test-mirrored and --test-upside-down", "scales": "--test-scales"}
            raise UserError(f"the task {task} has no {' and no '.join(flags[name] for name in sorted(unknown))}")
        return options


@dataclass(frozen=True)
class Network:
    """Network to use: a published one, or one that a run has trained."""

    weights: str = "resnet50.keras"
    """Tag of cnnjax.weights.published(): the network, its weights, and how its images are prepared."""
    file: Annotated[Path | None, MAY_DIFFER] = None
    """File with these weights; None: the cache, else they are downloaded."""
    run: Path | None = None
    """Folder of a run of a script that trains; its network is used in place of --weights."""
    darknet: tuple[Path, Path] | None = None
    """Darknet's .cfg and .weights files of a network to use in place of --weights, with --names."""
    names: Path | None = None
    """File with the names of the classes of --darknet, one in a line, such as coco.names."""
    resize: pretrained.Resize | None = None
    """crop: shorter side to a size, then the center; squeeze: all of the image, its proportions lost, as in the
    chapter; square: the largest central square. None: as the publisher; with --run as in training."""

    @property
    def title(self) -> str:
        """Name of the run or of the cfg file, or tag of the weights."""
        if self.darknet:
            return self.darknet[0].stem
        return self.run.resolve().name if self.run else self.weights

    @property
    def of_publisher(self) -> bool:
        """True for a published network with the publisher's classes."""
        return not (self.run or self.darknet)

    def card(self, *, random: bool = False) -> serving.Card:
        """Card of the network, which is not loaded yet.

        Args:
          random: as for ``load``.

        Raises:
          UserError: flags that contradict each other, or no such network.
        """
        if self.run and (random or self.file or self.resize):
            raise UserError("--run has a network and its way of resizing: leave out --file, --resize and --smoke")
        if self.darknet and (random or self.run or self.file or self.resize):
            raise UserError("--darknet has a network that squeezes: leave out --run, --file, --resize and --smoke")
        if (self.names is None) != (self.darknet is None):
            raise UserError("--darknet CFG WEIGHTS and --names FILE, the names of its classes, are given together")
        if self.darknet and self.names:
            return serving.darknet_card(self.darknet[0], self.names)
        if self.run:
            return serving.load_card(self.run)
        return serving.published_card(pretrained.published(self.weights), self.resize)

    def load(self, *, random: bool = False) -> serving.Served:
        """Network with its card.

        Args:
          random: take fresh weights in place of the published ones.

        Raises:
          UserError: as ``card``, or weights that cannot be had.
        """
        self.card(random=random)
        if self.run:
            return serving.load(self.run)
        if self.darknet and self.names:
            return serving.of_darknet(*self.darknet, self.names)
        network = pretrained.network(self.weights, self.file, random=random)
        return serving.of_published(network, self.resize)
