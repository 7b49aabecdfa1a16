"""Speed of detection on the CPU, image by image: a network of Darknet's files here and by OpenCV, and YOLO grids.

    pip install -e '.[bench]'
    python experiments/bench_detect.py --darknet yolo-fastest-1.1-xl.cfg yolo-fastest-1.1-xl.weights --names coco.names
    python experiments/bench_detect.py --smoke                                  # seconds, needs nothing beyond cnnjax

From the pixels of one image at the network's size to boxes after suppression (scores from 0.3, IoU 0.45). The
contenders take turns, image by image, in one process, each on all cores; images/s are medians. ``mobilenet_v2`` is
YOLOv3's grids over MobileNetV2, as detect.py trains them, with random weights. To expect: here 1.2 to 1.8 times
OpenCV's images/s.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import detect as detector
import jax
import numpy as np
import tyro

from cnnjax import cli, compiler, experiment, models, report, serving, settings
from cnnjax.models.detection import darknet
from cnnjax.tasks import classify, detect
from cnnjax.types import PyTree, UserError

SCORE, IOU, CLASSES = 0.3, 0.45, 20


@dataclass(frozen=True)
class Config:
    """Network and number of measurements."""

    size: settings.Pixels = 320
    """Height and width of the images of mobilenet_v2; Darknet's network has its own."""
    rounds: settings.PositiveInt = 50
    """Images for each contender."""

    network: tyro.conf.OmitArgPrefixes[settings.Network] = settings.Network()
    output: tyro.conf.OmitArgPrefixes[settings.Output] = settings.Output()


def here(model: Any, variables: PyTree, size: int) -> Callable[[], Any]:
    """Function that detects in one image by a compiled program."""
    names = [str(i) for i in range(model.num_classes)]
    task = detect.task(model, classify.unit, names, score_threshold=SCORE, iou_threshold=IOU)
    predict = jax.jit(task.predict, compiler_options=compiler.options())
    variables, images = jax.device_put(variables), pixels(size)[None]
    return lambda: jax.block_until_ready(predict(variables, images))


def pixels(size: int) -> np.ndarray:
    """Image of noise, uint8 [size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)


def opencv(config: Config, size: int) -> Callable[[], Any]:
    """Function that detects in one image by OpenCV's DNN module."""
    import cv2

    net = cv2.dnn.readNetFromDarknet(*map(str, config.network.darknet or ()))
    outputs, image = net.getUnconnectedOutLayersNames(), pixels(size)

    def run() -> Any:
        net.setInput(cv2.dnn.blobFromImage(image, 1 / 255, (size, size)))
        found = np.concatenate(net.forward(outputs))
        labels = found[:, 5:].argmax(1)
        scores = found[np.arange(len(found)), 5 + labels]
        corners = np.concatenate([found[:, :2] - found[:, 2:4] / 2, found[:, 2:4]], 1)
        return cv2.dnn.NMSBoxesBatched(corners, scores, labels, SCORE, IOU)

    return run


def contenders(config: Config) -> dict[str, Callable[[], Any]]:
    """Functions to time, by name."""
    grids = detector.Config().yolo
    fields = {"features": grids.grid_features, "depths": grids.grid_depths, "grid_strides": grids.grid_strides}
    model = models.create("yolov3", base=("mobilenet_v2", {}), num_classes=CLASSES, **fields)
    images = np.zeros((1, config.size, config.size, 3), np.float32)
    found = {"mobilenet_v2": here(model, jax.jit(model.init)(jax.random.key(0), images), config.size)}
    if config.network.darknet is None:
        return found
    if importlib.util.find_spec("cv2") is None:
        raise UserError("OpenCV is not installed: pip install -e '.[bench]'")
    described, variables = darknet.load(*config.network.darknet)
    size = serving.darknet_card(config.network.darknet[0], config.network.names).image_size
    name = config.network.title
    return {f"{name}, OpenCV": opencv(config, size), f"{name}, cnnjax": here(described, variables, size), **found}


def main(config: Config) -> dict[str, float]:
    """Times the contenders in turn, prints the medians, writes the report; returns the summary."""
    if config.output.smoke:
        config = settings.change(config, rounds=1, size=64)
    config = experiment.resolve(config, "bench-detect")
    runs = contenders(config)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with experiment.opened(config, {}) as run:
        for number in range(config.rounds + 1):
            for name, detects in runs.items():
                started = time.perf_counter()
                detects()
                if number:  # the first round compiles
                    times[name].append(time.perf_counter() - started)
        summary = {f"images_per_second/{name}": 1 / statistics.median(each) for name, each in times.items()}
        run.finish(summary)
    rows = [{"network": name.partition("/")[2], "images/s": f"{x:.1f}"} for name, x in summary.items()]
    report.table("detection, one image at a time", rows)
    return summary


if __name__ == "__main__":
    cli.main(main, Config)
