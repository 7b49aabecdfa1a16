"""Environment and fixtures of all tests: 8 CPU devices, the compilation cache, the shared real data, drawn images."""

import gc
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

# Before JAX is imported, here and (through the environment) in every process that a test starts.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("CNNJAX_CACHE", str(ROOT / ".cache" / "cnnjax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Compiling takes most of the tests' time. The operations stay the same; `make parity` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    flags.append("--xla_cpu_use_fusion_emitters=false")  # half of the time that is left
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ["KERAS_BACKEND"] = "jax"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


# The same examples each time: a change is to blame for what fails.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")


def pytest_collection_finish() -> None:
    """Takes what imports made out of garbage collection: to walk over it again and again takes 6 % of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_pictures() -> Iterator[None]:
    """Figures of runs with 2 examples in place of 24: matplotlib takes longer than the runs."""
    from cnnjax import experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "PICTURED", 2)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of shared real data and weights: ``$CNNJAX_SHARED``, default ``../shared``."""
    path = Path(os.environ.get("CNNJAX_SHARED", ROOT.parent / "shared")).resolve()
    if not path.is_dir():
        reason = f"no shared data in {path}: set CNNJAX_SHARED to the folder that has it"
        (pytest.fail if os.environ.get("CNNJAX_REQUIRE_SHARED") else pytest.skip)(reason)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 3 classes with 24 images each, of one color with some noise on it."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, color in (("blue", (0, 0, 200)), ("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (root / name).mkdir()
        for i in range(24):
            pixels = np.clip(np.array(color) + rng.normal(0, 30, (40 + i % 3, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pascal VOC folder of 60 images: on gray, one rectangle, red or blue."""
    root, rng = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    (root / "JPEGImages").mkdir()
    (root / "Annotations").mkdir()
    for i in range(60):
        pixels = np.full((60, 80, 3), 128, np.uint8)
        left, top = rng.integers(0, 40), rng.integers(0, 30)
        right, bottom = left + rng.integers(15, 40), top + rng.integers(15, 30)
        pixels[top:bottom, left:right] = (200, 0, 0) if i % 2 else (0, 0, 200)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{i}.png")
        tree = ET.Element("annotation")
        ET.SubElement(tree, "filename").text = f"{i}.png"
        size = ET.SubElement(tree, "size")
        for name, value in (("width", 80), ("height", 60), ("depth", 3)):
            ET.SubElement(size, name).text = str(value)
        thing = ET.SubElement(tree, "object")
        ET.SubElement(thing, "name").text = "red" if i % 2 else "blue"
        box = ET.SubElement(thing, "bndbox")
        for name, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ET.SubElement(box, name).text = str(value)
        ET.ElementTree(tree).write(root / "Annotations" / f"{i}.xml")
    return root


def _on_one_device(patch: pytest.MonkeyPatch) -> None:
    import jax

    from cnnjax import sharding

    make = sharding.make_mesh
    patch.setattr(sharding, "make_mesh", lambda devices=None: make(devices or jax.devices()[:1]))


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meshes of one device for tests that do not depend on their number: eight on two cores wait for each other."""
    _on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def one_device_in_module() -> Iterator[None]:
    """Meshes of one device for all tests and fixtures of a file."""
    with pytest.MonkeyPatch.context() as patch:
        _on_one_device(patch)
        yield
