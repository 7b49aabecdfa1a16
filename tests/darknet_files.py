"""Darknet's files for tests: cfg texts of the published YOLOs, written from their tables, and .weights of variables."""

import jax
import numpy as np

from cnnjax.models.detection import yolo
from cnnjax.weights import in_order, rules


def section(name, **values):
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def conv(filters, size=3, stride=1, norm=1, activation="leaky", **more):
    norm = {"batch_normalize": 1} if norm else {}
    return section(
        "convolutional", **norm, filters=filters, size=size, stride=stride, pad=1, activation=activation, **more
    )


def net(size):
    return section("net", width=size, height=size, channels=3)


def numbers(pairs):
    return ", ".join(f"{w},{h}" for w, h in pairs)


POOL = section("maxpool", size=2, stride=2)


def yolov2_voc(size):
    darknet19 = [conv(32), POOL, conv(64), POOL, conv(128), conv(64, 1), conv(128), POOL]
    darknet19 += [conv(256), conv(128, 1), conv(256), POOL, *[conv(512), conv(256, 1)] * 2, conv(512), POOL]
    darknet19 += [*[conv(1024), conv(512, 1)] * 2, conv(1024)]
    head = [conv(1024), conv(1024), section("route", layers=-9), conv(64, 1), section("reorg", stride=2)]
    head += [section("route", layers="-1,-4"), conv(1024), conv(125, 1, norm=0, activation="linear")]
    region = section("region", anchors=numbers(yolo.VOC_ANCHORS), classes=20, coords=4, num=5, softmax=1, thresh=0)
    return "".join([net(size), *darknet19, *head, region])


def head(mask, anchors):
    last = conv(255, 1, norm=0, activation="linear")
    return last + section(
        "yolo", mask=",".join(map(str, mask)), anchors=numbers(anchors), classes=80, num=len(anchors), thresh=0
    )


def yolov3(size):
    parts = [net(size), conv(32)]
    for features, units in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        unit = conv(features // 2, 1) + conv(features) + section("shortcut", **{"from": -3}, activation="linear")
        parts += [conv(features, stride=2), *[unit] * units]
    for features, mask, finer in ((512, (6, 7, 8), 61), (256, (3, 4, 5), 36), (128, (0, 1, 2), None)):
        parts += [conv(features, 1), conv(2 * features)] * 3 + [head(mask, yolo.COCO_ANCHORS)]
        if finer:
            up = section("upsample", stride=2)
            parts += [section("route", layers=-4), conv(features // 2, 1), up, section("route", layers=f"-1,{finer}")]
    return "".join(parts)


def yolov3_tiny(size):
    parts = [net(size)]
    for features in (16, 32, 64, 128, 256):
        parts += [conv(features), POOL]
    parts += [conv(512), section("maxpool", size=2, stride=1), conv(1024), conv(256, 1), conv(512)]
    parts += [head((3, 4, 5), yolo.TINY_ANCHORS), section("route", layers=-4), conv(128, 1)]
    parts += [
        section("upsample", stride=2),
        section("route", layers="-1,8"),
        conv(256),
        head((0, 1, 2), yolo.TINY_ANCHORS),
    ]
    return "".join(parts)


CFG = {"yolov2_voc": yolov2_voc, "yolov3": yolov3, "yolov3_tiny": yolov3_tiny}


def write_weights(path, model, variables, version=(0, 2, 0)):
    """Writes variables as a .weights file; before version 0.2 the number of images seen has 4 bytes."""
    order = in_order.in_order(rules.structure(model, model.image_shape))
    with path.open("wb") as file:
        np.array(version, "<i4").tofile(file)
        np.array([32013312], "<i8" if version[:2] >= (0, 2) else "<i4").tofile(file)
        for place, _ in order:
            value = variables
            for key in place:
                value = value[key]
            value = np.asarray(value, "<f4")
            (value.transpose(3, 2, 0, 1) if value.ndim == 4 else value).tofile(file)


def randomized(variables, seed=0):
    """Variables with norms that are not the identity."""
    rng = np.random.default_rng(seed)
    ranges = {"mean": (-0.2, 0.2), "var": (0.6, 1.4), "scale": (0.8, 1.2), "bias": (-0.2, 0.2)}

    def draw(path, x):
        low_high = ranges.get(path[-1].key)
        if path[-1].key == "scale" and "expand" in path[-3].key and "base" in path[1].key:
            low_high = (0.2, 0.4)  # sums around units would grow with each of 23
        return rng.uniform(*low_high, x.shape).astype(np.float32) if low_high else np.asarray(x)

    return jax.tree_util.tree_map_with_path(draw, variables)
