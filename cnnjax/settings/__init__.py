"""Settings that scripts share: groups of flags, each number with its range in its type.

A script's ``Config`` is a frozen dataclass whose fields are its own flags and these groups::

    reading: tyro.conf.OmitArgPrefixes[settings.Reading] = settings.Reading()

Flags are flat (``--threads 4``), and so are config.json and ``change(config, threads=4)``. A field annotated
with ``MAY_DIFFER`` may have another value when a run is resumed: no result depends on it; one annotated with
``LOCATES`` may, if it leads to the same data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnnjax.settings.data import Augmentation, Batches, Mixing, Reading
from cnnjax.settings.detection import DetectionImages, Joint, SSDHead, YOLOHead
from cnnjax.settings.fields import (
    LOCATES,
    MAY_DIFFER,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Pixels,
    Positive,
    PositiveInt,
    Range,
    Share,
    change,
    check,
    defaults,
    expanded,
    flat,
    noted,
)
from cnnjax.settings.networks import Base, Network, TestTime
from cnnjax.settings.segmentation import PixelLoss, SegmentationImages
from cnnjax.settings.training import FineTuning, Loop, Optimization, Phase, used

__all__ = [
    "LOCATES",
    "MAY_DIFFER",
    "SMOKE",
    "Augmentation",
    "Base",
    "Batches",
    "DetectionImages",
    "FineTuning",
    "Fraction",
    "Joint",
    "Loop",
    "Mixing",
    "Network",
    "NonNegative",
    "NonNegativeInt",
    "Optimization",
    "Output",
    "Phase",
    "PixelLoss",
    "Pixels",
    "Positive",
    "PositiveInt",
    "Range",
    "Reading",
    "SSDHead",
    "SegmentationImages",
    "Share",
    "TestTime",
    "YOLOHead",
    "change",
    "check",
    "defaults",
    "expanded",
    "flat",
    "noted",
    "used",
]

SMOKE = "mobilenet_v1_0.25_128.keras"  # small network for --smoke, with random weights


@dataclass(frozen=True)
class Output:
    """Folder of a run, and its small form."""

    run_dir: Annotated[Path | None, MAY_DIFFER] = None
    """Folder for results; a new one under runs/ if not given. Given again, the run goes on."""
    smoke: bool = False
    """A small network and few images, to see that everything works: the figures mean nothing."""
