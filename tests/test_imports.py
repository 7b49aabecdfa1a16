"""The rooms of the house: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cnnjax"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"types", "atomic"}
MIDDLE = {"losses", "metrics", "data", "optim", "weights", "sharding", "checkpoint", "compiler"}
UPPER = {"train", "summary", "report", "plot", "fit"}
# Room → the rooms of cnnjax that it may import, beside itself.
ALLOWED = {
    "types": set(),
    "atomic": set(),
    "__init__": set(),
    "ops": BASE,
    "nn": BASE | {"ops"},
    "models": BASE | {"ops", "nn"},
    "data": BASE | {"ops", "sharding"},
    "losses": BASE | {"ops"},
    "metrics": BASE | {"ops"},
    "optim": BASE,
    "weights": BASE | {"ops", "nn", "models"},
    "sharding": BASE,
    "compiler": BASE,
    "checkpoint": BASE,
    "train": BASE | MIDDLE | {"ops", "nn"},
    "fit": BASE | MIDDLE | UPPER,
    "summary": BASE | MIDDLE | {"ops", "nn"},
    "report": BASE | MIDDLE,
    "plot": BASE | MIDDLE,
    "tasks": BASE | MIDDLE | UPPER | {"ops", "nn"},
}
FOREIGN = {"tensorflow", "torch", "keras", "torchvision", "timm"}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    names = list(imports(path))
    ours = {name.split(".")[1] for name in names if name.startswith("cnnjax.")}
    assert ours - {room(path)} <= ALLOWED[room(path)]
    assert not FOREIGN & {name.split(".")[0] for name in names}
    if room(path) != "plot":
        assert "matplotlib" not in {name.split(".")[0] for name in names}


def test_models_use_the_convolutions_and_norms_of_nn():
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "linen":
                assert node.attr not in {"Conv", "ConvTranspose", "BatchNorm", "max_pool", "avg_pool"}, path


def test_importing_everything_has_no_side_effect():
    """No JAX backend is started, no folder made, no signal taken, no foreign framework loaded, nothing printed."""
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"""
import importlib, os, signal, sys
before = signal.getsignal(signal.SIGTERM), os.listdir()
for name in {names}:
    importlib.import_module(name)
assert (signal.getsignal(signal.SIGTERM), os.listdir()) == before
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a JAX backend was started"
assert not {FOREIGN} & set(sys.modules), {FOREIGN} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
