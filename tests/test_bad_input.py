"""Every mistake of a user on the command line is one line that names it, never a traceback; nothing is lost."""

import contextlib
import fcntl
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from cnnjax import experiment
from cnnjax.data import checking

SCRIPT = Path(__file__).parent.parent / "experiments" / "classify.py"
NOWHERE = "/dev/null/run"  # a run stops when it opens its folder: after the data and the model, before training


class Result(NamedTuple):
    status: object
    out: str
    err: str


def classify(*args: object) -> Result:
    """Runs the script as ``python experiments/classify.py`` does, in this process: importing JAX takes seconds."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv, status = [str(SCRIPT), *map(str, args)], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = before
    return Result(status, out.getvalue(), err.getvalue())


def error(result: Result) -> str:
    """The one line of error with which the run ended."""
    assert result.status == 2
    assert "Traceback" not in result.out + result.err
    line = result.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def pictures(root: Path, *names: str, count: int = 12, size: int = 8) -> Path:
    rng = np.random.default_rng(len(names))
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name / f"{index:02}.png")
    return root


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model nope", "unknown model 'nope'; choices: alexnet, alexnet_torchvision, "),
        ("--model lenet", "unknown model 'lenet'; did you mean lenet5"),
        ("--dataset fashion_minst", "unknown data set 'fashion_minst': did you mean fashion_mnist"),
        (
            "--dataset no/such/folder",
            "no/such/folder: no such folder; expected one with a sub-folder of images for each",
        ),
        ("--train-split train[:5]", "digits has fixed splits"),
        ("--model lenet5", "lenet5 cannot take the images of digits: expected images"),
        ("--batch-size 12", "batch size 12 does not divide over 8 devices × 1 accumulation steps: use 8 or 16"),
        ("--batch-size 4", "batch size 4 does not divide over 8 devices × 1 accumulation steps: use 8"),
        ("--batch-size 1296", "batch size 1296 is larger than the training set of 1293 images"),
        ("--batch-size 0", "--batch-size must be above 0, got 0"),
        (
            "--smoke --batch-size -16 --learning-rate nan",
            "--batch-size must be above 0, got -16; --learning-rate must be",
        ),
        ("--epochs 0", "--epochs must be above 0, got 0"),
        ("--image-size -5", "--image-size must be in 1 … 8192, got -5"),
        ("--clip-norm 0", "--clip-norm must be above 0, got 0"),
        ("--accumulate 0", "--accumulate must be above 0, got 0"),
        ("--log-every 0", "--log-every must be above 0, got 0"),
        ("--learning-rate inf", "--learning-rate must be above 0, at most 1e+30, got inf"),
        ("--rotate nan", "--rotate must be 0 or more, got nan"),
        ("--shift -3", "--shift must be in 0 … 1, 1 excluded, got -3"),
        ("--weight-decay -1", "--weight-decay must be 0 or more, got -1"),
        ("--seed -1", "--seed must be 0 or more, got -1"),
        ("--workers -1 --threads -2", "--threads must be in 0 … 512, got -2; --workers must be in 0 … 64, got -1"),
        ("--checkpoint-every -1", "--checkpoint-every must be 0 or more, got -1"),
        ("--warmup-epochs nan", "--warmup-epochs must be 0 or more, got nan"),
        ("--label-smoothing 1.5", "--label-smoothing must be in 0 … 1, 1 excluded, got 1.5"),
        ("--ema-decay 1", "--ema-decay must be in 0 … 1, 1 excluded, got 1"),
        ("--zoom 1", "--zoom must be in 0 … 1, 1 excluded, got 1"),
        ("--brightness -0.1", "--brightness must be in 0 … 1, 1 excluded, got -0.1"),
        ("--mixup nan", "--mixup must be 0 or more, got nan"),
    ],
)
def test_impossible_settings_are_named(flags, says):
    assert says in error(classify(*flags.split(), "--run-dir", NOWHERE))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--leraning-rate 1", "--leraning-rate"),
        ("--optimizer adam", "'adamw'"),
        ("--epochs few", "--epochs"),
        ("--channels 2", "--channels"),
        ("--dtype float16", "'bfloat16'"),
    ],
)
def test_flags_that_cannot_be_read_are_named(flags, says):
    result = classify(*flags.split())
    assert result.status == 2
    assert says in result.out + result.err
    assert "Traceback" not in result.out + result.err


def test_unprepared_and_half_prepared_data_sets_come_with_a_cure(shared: Path, tmp_path: Path):
    line = error(classify("--dataset", "cifar10", "--data-dir", tmp_path))
    assert line.startswith(f"error: cifar10 is not prepared in {tmp_path}: run `python -m cnnjax.data.prepare cifar10")
    copy = tmp_path / "mnist" / "3.0.1"
    copy.mkdir(parents=True)
    for path in (shared / "data" / "tfds" / "mnist" / "3.0.1").glob("*.json"):
        shutil.copyfile(path, copy / path.name)
    line = error(classify("--dataset", "mnist", "--data-dir", tmp_path))
    assert "mnist-train.array_record-00000-of-00001" in line
    assert f"delete {copy}, then run `python -m cnnjax.data.prepare mnist" in line


def test_folders_of_images(tmp_path: Path):
    root = pictures(tmp_path / "photos", *"abcdefghij")
    line = error(classify("--dataset", root, "--model", "lenet5", "--image-size", 28, "--run-dir", NOWHERE))
    assert "lenet5 cannot take the images of" in line
    assert "[n, 28, 28, 1]" in line
    assert "(1, 28, 28, 3)" in line
    (root / "j" / "00.png").write_bytes(b"no image")
    (root / "a" / "01.png").write_bytes((root / "a" / "01.png").read_bytes()[:60])
    flags = ("--dataset", root, "--image-size", 8, "--run-dir", NOWHERE)
    line = error(classify(*flags))
    assert ".png: not a readable image (" in line
    assert line.endswith(": 2 of 120 images cannot be used: repair or remove them, or give --skip-corrupt")
    assert "a/01.png: not" in line
    assert "j/00.png: not" in line
    result = classify(*flags, "--skip-corrupt")
    assert f"skipped: {root}/j/00.png: not a readable image" in result.out
    assert (
        sum(int(line.split(",")[1].split()[0]) for line in result.out.splitlines() if "corrupt ones skipped" in line)
        == 2
    )
    assert "cannot write the run folder" in error(result)  # so it went on
    for path in (root / "c").iterdir():
        path.unlink()
    assert "no images in class folder(s) ['c']" in error(classify(*flags))


def test_corrupt_images_met_by_a_worker_process_are_named(tmp_path: Path):
    for part in ("train", "valid", "test"):
        pictures(tmp_path / "photos" / part, "a", "b")
    paths = sorted((tmp_path / "photos" / "train").glob("*/*.png"))
    checking.verdicts(paths, experiment.checks())
    for path in paths[::2]:  # they break after they were checked
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    flags = ["--dataset", tmp_path / "photos", "--run-dir", tmp_path / "run", "--image-size", "8", "--batch-size", "16"]
    command = [sys.executable, SCRIPT, *flags, "--model", "digits_cnn", "--in-memory-bytes", "0", "--workers", "1"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=100, check=False)
    assert ".png: not a readable image" in error(Result(result.returncode, result.stdout, result.stderr))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Empty file system of its own, 5 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    line = error(classify("--run-dir", tmp_path / "file" / "run"))
    assert line == f"error: cannot write the run folder {tmp_path}/file/run: Not a directory"
    line = error(classify("--run-dir", tmp_path / "file"))
    assert line == f"error: cannot write the run folder {tmp_path}/file: File exists"


def test_a_read_only_disk_is_named(mounted: Path):
    remount(mounted, "ro")
    line = error(classify("--run-dir", mounted / "run"))
    assert line == f"error: cannot write the run folder {mounted}/run: Read-only file system"


@pytest.mark.usefixtures("one_device")
@pytest.mark.exhaustive
def test_a_full_disk_loses_nothing(mounted: Path):
    run = mounted / "run"
    line = error(classify("--smoke", "--run-dir", run))
    assert "no space left for the checkpoint of step 8" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["4"]
    remount(mounted, "size=64m")
    result = classify("--smoke", "--run-dir", run)
    assert result.status == 0
    assert f"resuming {run} at step 4 of 8" in result.out
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


DIVERGES = (
    "--smoke",
    "--learning-rate",
    "1e10",
    "--optimizer",
    "sgd",
    "--warmup-epochs",
    "0",
    "--checkpoint-every",
    "1",
)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory) -> tuple[Path, Result]:
    """Folder of a run whose loss became infinite, and its output."""
    folder = tmp_path_factory.mktemp("diverged")
    return folder, classify(*DIVERGES, "--run-dir", folder)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint_before(diverged):
    folder, result = diverged
    line = error(result)
    step = int(line.split(" at step ")[1].split(":")[0])
    assert step == 2
    assert "lower the learning rate" in line
    saved = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert saved == [step - 1]
    state = ocp.PyTreeCheckpointer().restore(folder / "checkpoints" / str(saved[-1]) / "state")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_another_configuration_is_refused_naming_what_differs(diverged, tmp_path: Path):
    folder = copy_of(diverged[0], tmp_path)
    line = error(classify(*DIVERGES, "--run-dir", folder, "--seed", 7, "--momentum", 0.5))
    assert "holds another run: momentum was 0.9 and is 0.5; seed was 0 and is 7: choose another --run-dir" in line


@pytest.mark.parametrize("content", ["", '{"model": "digits', "[1]", "null", "\x00\xff"])
def test_a_damaged_config_is_named(diverged, tmp_path: Path, content):
    folder = copy_of(diverged[0], tmp_path)
    (folder / "config.json").write_text(content, "latin-1")
    line = error(classify(*DIVERGES, "--run-dir", folder))
    assert f"{folder}/config.json is damaged" in line
    assert "choose another --run-dir" in line


def test_a_run_folder_in_use_is_refused(diverged, tmp_path: Path):
    folder = copy_of(diverged[0], tmp_path)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"{folder} is in use by another process" in error(classify(*DIVERGES, "--run-dir", folder))


@pytest.mark.parametrize("damage", ['{"step": 1, "train/lo', "null", "{}", "\x00\x00"])
def test_a_damaged_line_of_metrics_is_named(diverged, tmp_path: Path, damage):
    folder = copy_of(diverged[0], tmp_path)
    number = len((folder / "metrics.jsonl").read_text().splitlines()) + 1
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{damage}\n")
    line = error(classify(*DIVERGES, "--run-dir", folder))
    assert f"{folder}/metrics.jsonl, line {number}, is damaged: delete the line, or choose another --run-dir" in line


def test_the_real_process_ends_the_same_way(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--model", "nope", "--run-dir", str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=os.environ)
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown model 'nope'; choices: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
