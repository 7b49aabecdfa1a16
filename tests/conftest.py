"""What all tests share: 8 CPU devices, the compilation cache, and the shared real data."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

# Before JAX is imported, here and (through the environment) in every process that a test starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data and weights: ``$CNNJAX_SHARED``, default ``../shared``."""
    path = Path(os.environ.get("CNNJAX_SHARED", ROOT.parent / "shared")).resolve()
    if not path.is_dir():
        reason = f"no shared data in {path}: set CNNJAX_SHARED to the folder that has it"
        (pytest.fail if os.environ.get("CNNJAX_REQUIRE_SHARED") else pytest.skip)(reason)
    return path
