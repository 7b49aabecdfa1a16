"""Catalog of published weights for our models: URL and checksum, preparation of images, accuracy.

Accuracies are percent of ImageNet's 50,000 validation images, one crop, and average precisions percent on COCO or VOC,
as ``source`` states them, not measured here.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from cnnjax.weights.hub.labels import ClassOrder, class_names
from cnnjax.weights.hub.preprocess import Mode


@dataclass(frozen=True)
class Published:
    """File of weights that its publisher offers for download."""

    tag: str
    """Name of the entry: our model and the publisher, such as ``resnet50.keras``."""
    model: str
    """Name of our model, one of ``models.names()``."""
    url: str
    file: str
    """Name in the cache: the publisher's own, unless that does not identify the file."""
    source: str
    """Publication that states the accuracy."""
    image_size: int
    """Height and width of the model's images in pixels."""
    resize: int
    """Pixels of the shorter side before the center crop. Keras states none: there, the crop is 7/8 of it."""
    resample: Literal["bilinear", "bicubic"]
    preprocess: Mode
    """Mode of ``weights.preprocess``."""
    top1: float | None = None
    """Top-1 accuracy of a classifier, percent."""
    top5: float | None = None
    """Top-5 accuracy of a classifier, percent."""
    ap: float | None = None
    """COCO's average precision of a detector over IoU 0.50 … 0.95, percent, where it is stated."""
    ap50: float | None = None
    """Its average precision at IoU 0.5, of COCO or, with VOC's classes, VOC 2007, percent, where it is stated."""
    miou: float | None = None
    """Mean IoU of a segmenter on the photos of COCO's val2017 that show VOC's classes, percent."""
    task: Literal["classify", "detect", "segment"] = "classify"
    """Name of a module of ``cnnjax.tasks``."""
    class_order: ClassOrder = "imagenet"
    """Names of the classes in the order of the network, see ``labels.class_names``."""
    sha256: str | None = None
    """SHA-256 in hexadecimal, or its beginning where the publisher states no more."""
    md5: str | None = None
    """MD5 in hexadecimal, where the publisher states it."""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields with which our model gives the results of the publisher's."""

    def __post_init__(self) -> None:
        # Read-only, because every call of ``published`` gives the same entries.
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(class_names(self.class_order))

    @property
    def digest(self) -> str | None:
        """The checksum, or its beginning: ``sha256:…`` or ``md5:…``; None if the publisher states none."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"md5:{self.md5}" if self.md5 else None


def published() -> dict[str, Published]:
    """All entries by tag, sorted."""
    return dict(_entries())


@functools.cache
def _entries() -> dict[str, Published]:
    entries = [*_keras_files(), *_keras_mobilenets(), *_torchvision_files(), *_timm_files(), *_darknet_files()]
    return {entry.tag: entry for entry in sorted(entries, key=lambda entry: entry.tag)}


def _keras(
    model: str, path: str, size: int, preprocess: Any, top1: float, top5: float, *, tag: str = "", **more: Any
) -> Published:
    return Published(
        tag=f"{tag or model.removesuffix('_v1')}.keras",
        model=model,
        url=f"https://storage.googleapis.com/tensorflow/keras-applications/{path}",
        file=path.rpartition("/")[2],
        image_size=size,
        resize=round(size * 8 / 7),
        resample="bilinear",
        preprocess=preprocess,
        top1=top1,
        top5=top5,
        **{"source": _KERAS_SOURCE, **more},
    )


_KERAS_SOURCE = "table of keras.io/api/applications"
_INCEPTION_RESNET_V2 = ("inception_resnet_v2", "inception_resnet_v2/inception_resnet_v2")
_KERAS_INCEPTION_V3 = {"aux": False, "count_include_pad": False, "momentum": 0.99}

# Our model; folder and beginning of the file's name; image size; preprocess; top-1; top-5; MD5.
_KERAS: tuple[tuple[Any, ...], ...] = (
    ("vgg16", "vgg16/vgg16", 224, "caffe", 71.3, 90.1, "64373286793e3c8b2b4e3219cbf3544b"),
    ("vgg19", "vgg19/vgg19", 224, "caffe", 71.3, 90.0, "cbe5617147190e668d6c5d5026f83318"),
    ("resnet50_v1", "resnet/resnet50", 224, "caffe", 74.9, 92.1, "2cb95161c43110f7111970584f804107"),
    ("resnet101_v1", "resnet/resnet101", 224, "caffe", 76.4, 92.8, "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
    ("resnet152_v1", "resnet/resnet152", 224, "caffe", 76.6, 93.1, "100835be76be38e30d865e96f2aaae62"),
    ("resnet50_v2", "resnet/resnet50v2", 224, "tf", 76.0, 93.0, "3ef43a0b657b3be2300d5770ece849e0"),
    ("inception_v3", "inception_v3/inception_v3", 299, "tf", 77.9, 93.7, "9a0d58056eeedaa3f26cb7ebd46da564"),
    (*_INCEPTION_RESNET_V2, 299, "tf", 80.3, 95.3, "e693bd0210a403b3192acc6073ad2e96"),
    ("xception", "xception/xception", 299, "tf", 79.0, 94.5, "0a58e3b7378bc2990ea3b43d5981f1f6"),
)


def _keras_files() -> Iterator[Published]:
    for model, stem, *rest, md5 in _KERAS:
        fields = _KERAS_INCEPTION_V3 if model == "inception_v3" else {}
        yield _keras(model, f"{stem}_weights_tf_dim_ordering_tf_kernels.h5", *rest, md5=md5, fields=fields)


# Width → image size → top-1 and top-5. Keras states figures for width 1 at 224 only; the others are those of the
# TensorFlow checkpoints of June 2017 (v1) and 2018 (v2), from which its files were translated.
_Figures = dict[float, dict[int, tuple[float, float]]]
_MOBILENET_V1: _Figures = {
    1.0: {224: (70.4, 89.5), 192: (69.3, 88.9), 160: (67.2, 87.5), 128: (64.1, 85.3)},
    0.75: {224: (68.4, 88.2), 192: (67.4, 87.3), 160: (65.2, 86.1), 128: (61.8, 83.6)},
    0.5: {224: (64.0, 85.4), 192: (62.1, 84.0), 160: (59.9, 82.5), 128: (56.2, 79.6)},
    0.25: {224: (50.6, 75.0), 192: (49.0, 73.6), 160: (46.0, 70.7), 128: (41.3, 66.2)},
}
_MOBILENET_V2: _Figures = {
    1.4: {224: (75.0, 92.5)},
    1.3: {224: (74.4, 92.1)},
    1.0: {224: (71.3, 90.1), 192: (70.7, 90.1), 160: (68.8, 89.0), 128: (65.3, 86.9), 96: (60.3, 83.2)},
    0.75: {224: (69.8, 89.6), 192: (68.7, 88.9), 160: (66.4, 87.3), 128: (63.2, 85.3), 96: (58.8, 81.6)},
    0.5: {224: (65.4, 86.4), 192: (63.9, 85.4), 160: (61.0, 83.2), 128: (57.7, 80.8), 96: (51.2, 75.8)},
    0.35: {224: (60.3, 82.9), 192: (58.2, 81.2), 160: (55.7, 79.1), 128: (50.8, 75.0), 96: (45.5, 70.4)},
}
_CHECKPOINTS = "tensorflow/models, slim/nets: of the checkpoint that the file was translated from"
_TENTHS = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}
# Keras states no checksums of these files; this one was computed from a file whose predictions are right.
_COMPUTED = {"mobilenet_v1_0.75_224": "ae59f6e86edc054f4200fa4d04ae5d8559ca322f391b0aedac4eb9bec21c8f6e"}


def _keras_mobilenets() -> Iterator[Published]:
    for model, figures in (("mobilenet_v1", _MOBILENET_V1), ("mobilenet_v2", _MOBILENET_V2)):
        for width, sizes in figures.items():
            for size, (top1, top5) in sizes.items():
                if model == "mobilenet_v1":
                    path = f"mobilenet/mobilenet_{_TENTHS[width]}_{size}_tf.h5"
                else:
                    path = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}.h5"
                main = (width, size) == (1.0, 224)
                tag = model if main else f"{model}_{width}_{size}"
                more = {"fields": {} if width == 1.0 else {"width": width}, "sha256": _COMPUTED.get(tag)}
                source = _KERAS_SOURCE if main else _CHECKPOINTS
                yield _keras(model, path, size, "tf", top1, top5, tag=tag, source=source, **more)


# Fields of torch's ports of networks from TensorFlow; our defaults are Keras'.
_TORCH = {"padding": 1, "epsilon": 1e-5, "momentum": 0.9}

# Tag; file, whose name ends with the beginning of its SHA-256; pixels of the shorter side; top-1; top-5.
_TORCHVISION: tuple[tuple[Any, ...], ...] = (
    ("alexnet.torchvision", "alexnet-owt-7be5be79.pth", 256, 56.522, 79.066),
    ("vgg16.torchvision", "vgg16-397923af.pth", 256, 71.592, 90.382),
    ("vgg19.torchvision", "vgg19-dcbb9e9d.pth", 256, 72.376, 90.876),
    ("googlenet.torchvision", "googlenet-1378be20.pth", 256, 69.778, 89.530),
    ("inception_v3.torchvision", "inception_v3_google-0cc3c7bd.pth", 342, 77.294, 93.450),
    ("resnet18.torchvision", "resnet18-f37072fd.pth", 256, 69.758, 89.078),
    ("resnet34.torchvision", "resnet34-b627a593.pth", 256, 73.314, 91.420),
    ("resnet50.torchvision", "resnet50-0676ba61.pth", 256, 76.130, 92.862),
    ("resnet50.torchvision_v2", "resnet50-11ad3fa6.pth", 232, 80.858, 95.434),
    ("resnet101.torchvision", "resnet101-63fe2227.pth", 256, 77.374, 93.546),
    ("resnet101.torchvision_v2", "resnet101-cd907fc2.pth", 232, 81.886, 95.780),
    ("resnet152.torchvision", "resnet152-394f9c45.pth", 256, 78.312, 94.046),
    ("resnet152.torchvision_v2", "resnet152-f82ba261.pth", 232, 82.284, 96.002),
    ("mobilenet_v2.torchvision", "mobilenet_v2-b0353104.pth", 256, 71.878, 90.286),
    ("mobilenet_v2.torchvision_v2", "mobilenet_v2-7ebf99e0.pth", 232, 72.154, 90.822),
)
# The auxiliary heads in GoogLeNet's file were never trained.
_TORCHVISION_FIELDS: dict[str, dict[str, Any]] = {"googlenet": {"aux": False}, "mobilenet_v2": _TORCH}


def _hash_of(file: str) -> str:
    """Beginning of the SHA-256 with which torchvision ends a file's name."""
    return re.fullmatch(r".*-([0-9a-f]{8})\.pth", file)[1]  # type: ignore[index]


def _torchvision_files() -> Iterator[Published]:
    for tag, file, resize, top1, top5 in _TORCHVISION:
        name = tag.partition(".")[0]
        # torchvision's own models of these two turn images prepared as "torch" into "tf" (transform_input).
        preprocess: Literal["tf", "torch"] = "tf" if name in ("googlenet", "inception_v3") else "torch"
        yield Published(
            tag=tag,
            model={"alexnet": "alexnet_torchvision", "googlenet": "googlenet_bn"}.get(name, name),
            url=f"https://download.pytorch.org/models/{file}",
            file=file,
            source="torchvision's weights enums",
            image_size=299 if name == "inception_v3" else 224,
            resize=resize,
            resample="bilinear",
            preprocess=preprocess,
            top1=top1,
            top5=top5,
            sha256=_hash_of(file),
            fields=_TORCHVISION_FIELDS.get(name, {}),
        )
    yield Published(
        tag="ssd300_vgg16.torchvision",
        model="ssd300_vgg16",
        url="https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth",
        file="ssd300_vgg16_coco-b556d3b4.pth",
        source="torchvision's weights enums",
        image_size=300,
        resize=300,
        resample="bilinear",
        preprocess="ssd",
        ap=25.1,
        sha256="b556d3b4",
        task="detect",
        class_order="coco_ids",
    )
    for model, file, miou in _TORCHVISION_SEGMENTERS:
        # torchvision makes the shorter side 520 pixels and keeps proportions; ours takes squares.
        yield Published(
            tag=f"{model}.torchvision",
            model=model,
            url=f"https://download.pytorch.org/models/{file}",
            file=file,
            source="torchvision's weights enums",
            image_size=520,
            resize=520,
            resample="bilinear",
            preprocess="torch",
            miou=miou,
            sha256=_hash_of(file),
            task="segment",
            class_order="voc_background",
        )


_TORCHVISION_SEGMENTERS: tuple[tuple[str, str, float], ...] = (
    ("fcn_resnet50", "fcn_resnet50_coco-1167a1af.pth", 60.5),
    ("fcn_resnet101", "fcn_resnet101_coco-7ecb50ca.pth", 63.7),
    ("deeplabv3_resnet50", "deeplabv3_resnet50_coco-cd0a2569.pth", 66.4),
    ("deeplabv3_resnet101", "deeplabv3_resnet101_coco-586e9e4e.pth", 67.4),
)


# Tag; timm's name; image size; pixels of the shorter side; top-1; top-5.
_TIMM: tuple[tuple[Any, ...], ...] = (
    ("resnet18.timm", "resnet18.a1_in1k", 224, 235, 71.504, 90.086),
    ("resnet34.timm", "resnet34.a1_in1k", 224, 235, 76.420, 92.896),
    ("resnet50.timm", "resnet50.a1_in1k", 224, 235, 80.382, 94.598),
    ("resnet101.timm", "resnet101.a1_in1k", 224, 235, 81.494, 95.164),
    ("resnet152.timm", "resnet152.a1_in1k", 224, 235, 81.998, 95.294),
    ("seresnet50.timm", "seresnet50.a1_in1k", 224, 235, 80.012, 94.704),
    ("seresnet50.timm_a2", "seresnet50.a2_in1k", 224, 235, 80.102, 94.720),
    ("seresnet50.timm_a3", "seresnet50.a3_in1k", 160, 168, 75.104, 92.096),
    ("seresnet50.timm_ra2", "seresnet50.ra2_in1k", 224, 256, 80.260, 95.068),
    ("senet154.timm", "legacy_senet154.in1k", 224, 256, 81.320, 95.502),
    ("inception_v4.timm", "inception_v4.tf_in1k", 299, 341, 80.144, 94.982),
    ("xception.timm", "legacy_xception.tf_in1k", 299, 333, 79.058, 94.396),
    ("mobilenet_v1.timm", "mobilenetv1_100.ra4_e3600_r224_in1k", 224, 256, 75.388, 92.310),
    ("mobilenet_v1_1.25.timm", "mobilenetv1_125.ra4_e3600_r224_in1k", 224, 248, 76.920, 93.232),
)
_TIMM_FIELDS: dict[str, dict[str, Any]] = {
    "xception.timm": _TORCH,
    "mobilenet_v1.timm": _TORCH,
    "mobilenet_v1_1.25.timm": {"width": 1.25, **_TORCH},
}
# These names end with a hash too, but timm does not verify it, so neither do we.
_TIMM_RELEASES = {
    "senet154.timm": "v0.1-weights/legacy_senet154-e9eb9fe6.pth",
    "xception.timm": "v0.1-cadene/xception-43020ad28.pth",
}


def _timm_files() -> Iterator[Published]:
    for tag, name, size, resize, top1, top5 in _TIMM:
        url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
        file = f"{name}.safetensors"
        if release := _TIMM_RELEASES.get(tag):
            url = f"https://github.com/rwightman/pytorch-image-models/releases/download/{release}"
            file = release.partition("/")[2]
        model = re.split(r"_1\.25|\.", tag)[0]
        yield Published(
            tag=tag,
            model=model,
            url=url,
            file=file,
            source=f"huggingface/pytorch-image-models, results/results-imagenet.csv: {name}",
            image_size=size,
            resize=resize,
            resample="bilinear" if model == "senet154" else "bicubic",
            preprocess="tf" if model in ("inception_v4", "xception", "mobilenet_v1") else "torch",
            top1=top1,
            top5=top5,
            fields=_TIMM_FIELDS.get(tag, {}),
        )


# Tag and file; image size; top-1, top-5 of a classifier, or average precision at IoU 0.5; MD5, where it is known.
_DARKNET: tuple[tuple[Any, ...], ...] = (
    ("darknet19", "darknet19", 256, 72.9, 91.2, None),
    ("darknet19_448", "darknet19", 448, 76.4, 93.5, None),
    ("darknet53", "darknet53", 256, 77.2, 93.8, None),
    ("darknet53_448", "darknet53", 448, 78.5, 94.7, None),
    ("yolov2-voc", "yolov2_voc", 416, 76.8, None, None),
    ("yolov3", "yolov3", 416, 55.3, None, "c84e5b99d0e52cd466ae710cadf6d84c"),
    ("yolov3-tiny", "yolov3_tiny", 416, 33.1, None, "3bcd6b390912c18924b46b26a9e7ff53"),
)


def _darknet_files() -> Iterator[Published]:
    for stem, model, size, score, top5, md5 in _DARKNET:
        scores: dict[str, Any] = {"top1": score, "top5": top5, "class_order": "imagenet_devkit"}
        if top5 is None:
            scores = {"ap50": score, "task": "detect", "class_order": "voc" if model == "yolov2_voc" else "coco"}
        yield Published(
            tag=f"{stem.replace('-', '_')}.darknet",
            model=model,
            url=f"https://data.pjreddie.com/files/{stem}.weights",
            file=f"{stem}.weights",
            source="tables of pjreddie.com/darknet; of yolov2-voc the paper's Table 3",
            image_size=size,
            resize=size,
            resample="bilinear",
            preprocess="unit",
            md5=md5,
            **scores,
        )
