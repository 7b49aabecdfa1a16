"""Packages of cnnjax: the imports that are allowed between them, and imports without side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cnnjax"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"types", "atomic", "text"}
TOOLS = {"losses", "metrics", "data", "optim", "weights", "sharding", "checkpoint", "compiler"}
LOOP = {"train", "fit", "summary", "report", "plot"}
LAST = {"pretrained", "serving", "settings", "experiment", "cli"}
# Room → the rooms of cnnjax that it may import, beside itself.
ALLOWED = {
    "types": set(),
    "atomic": set(),
    "text": set(),
    "__init__": set(),
    "ops": BASE,
    "nn": BASE | {"ops"},
    "models": BASE | {"ops", "nn"},
    "losses": BASE | {"ops"},
    "metrics": BASE | {"ops"},
    "data": BASE | {"ops", "sharding"},
    "optim": BASE,
    "weights": BASE | {"ops", "nn"},
    "sharding": BASE,
    "compiler": BASE,
    "checkpoint": BASE | {"sharding"},
    "train": BASE | TOOLS | {"ops", "nn"},
    "fit": BASE | TOOLS | LOOP,
    "summary": BASE | TOOLS | {"ops", "nn"},
    "report": BASE | TOOLS,
    "plot": BASE | TOOLS,
    "tasks": BASE | TOOLS | LOOP | {"ops", "nn"},
    **{room: BASE | TOOLS | LOOP | LAST | {"ops", "nn", "models", "tasks"} for room in LAST},
}
# Files that may import more than their room: Darknet's file of settings is the model itself.
MORE = {"models/detection/darknet.py": {"weights"}}
FOREIGN = {"tensorflow", "torch", "keras", "torchvision", "timm"}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names that a file imports, in functions too."""
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
    assert ours - {room(path)} <= ALLOWED[room(path)] | MORE.get(str(path.relative_to(PACKAGE)), set())
    assert not FOREIGN & {name.split(".")[0] for name in names}
    if room(path) != "plot":
        assert "matplotlib" not in {name.split(".")[0] for name in names}


def modules(path):
    """Files of cnnjax that a file imports, whatever it takes from them."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            stem = PACKAGE.parent.joinpath(*parts[:end])
            file = next((x for x in (stem.with_suffix(".py"), stem / "__init__.py") if x in MODULES), None)
            if file is not None:
                found.add(file)
                break
    return found - {path}


def circle(files, edges):
    """Files that import each other, directly or through others; empty where none do."""
    done, path = set(), []

    def visit(file):
        if file in path:
            return path[path.index(file) :]
        if file in done:
            return []
        path.append(file)
        found = next((loop for other in sorted(edges(file)) if (loop := visit(other))), [])
        path.pop()
        done.add(file)
        return found

    return next((loop for file in files if (loop := visit(file))), [])


def test_no_two_files_import_each_other():
    assert circle("abc", {"a": "b", "b": "c", "c": "b"}.get) == ["b", "c"]
    # A package finds its files by name when it is asked; what it imports at once must not import it.
    assert not circle(MODULES, lambda path: {other for other in modules(path) if other.name != "__init__.py"})


def test_models_know_no_file_of_anybody_s():
    """Names of others' weights stand in weights/layouts, and those of their files in weights/hub."""
    for path in (PACKAGE / "models").rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not {text for text in words if isinstance(text, str) and text.endswith((".h5", ".pth", ".safetensors"))}
        assert "Layout" not in path.read_text(), path


def test_models_use_the_convolutions_and_norms_of_nn():
    for path in (PACKAGE / "models").rglob("*.py"):
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
