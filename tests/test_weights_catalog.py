"""The catalog against the publisher's source that is installed here, and against our models."""

import ast
import inspect
import math
from urllib.parse import urlparse

import keras
import numpy as np
import pytest
from published import create

from cnnjax import serving, settings, weights
from cnnjax.types import UserError
from cnnjax.weights import in_order, layouts, rules
from cnnjax.weights.hub import download, labels
from cnnjax.weights.hub.catalog import published

ENTRIES = published()
CLASSIFIERS = {tag: entry for tag, entry in ENTRIES.items() if entry.task == "classify"}
HOSTS = {"data.pjreddie.com", "storage.googleapis.com", "download.pytorch.org", "huggingface.co", "github.com"}
APPLICATIONS = {
    "vgg16.keras": "VGG16",
    "vgg19.keras": "VGG19",
    "resnet50.keras": "ResNet50",
    "resnet101.keras": "ResNet101",
    "resnet152.keras": "ResNet152",
    "resnet50_v2.keras": "ResNet50V2",
    "inception_v3.keras": "InceptionV3",
    "inception_resnet_v2.keras": "InceptionResNetV2",
    "xception.keras": "Xception",
}
MOBILENETS = {"mobilenet_v1": keras.applications.MobileNet, "mobilenet_v2": keras.applications.MobileNetV2}


def test_entries():
    assert list(ENTRIES) == sorted(ENTRIES)
    assert {entry.tag: entry for entry in ENTRIES.values()} == ENTRIES
    for names in ([entry.file for entry in ENTRIES.values()], [entry.url for entry in ENTRIES.values()]):
        assert len(set(names)) == len(names)
    for tag, entry in ENTRIES.items():
        url = urlparse(entry.url)
        assert url.scheme == "https"
        assert url.netloc in HOSTS
        if entry.task == "classify":
            assert 40 < entry.top1 < entry.top5 < 100
            assert sorted(labels.class_names(entry.class_order)) == sorted(labels.class_names("imagenet"))
        else:
            assert 20 < (entry.ap or entry.ap50 or entry.miou) < 100
            assert (entry.top1, entry.top5) == (None, None)
        assert entry.image_size < entry.resize or entry.preprocess == "unit" or entry.task != "classify"
        assert tag.startswith(entry.model.removesuffix("_v1").removesuffix("_bn").removesuffix("_torchvision"))
        assert download.by_file_name(entry.file) is entry
    assert download.by_file_name("model.safetensors") is None


def test_models():
    """The image size is the paper's, except where weights for several sizes were published."""
    for tag, entry in ENTRIES.items():
        model = create(entry, dtype=np.float16)
        assert (model.num_classes, model.dtype) == (entry.classes, np.float16)
        if entry.task == "classify":
            assert create(entry, num_classes=None).num_classes is None
        if entry.task != "segment" and not tag.startswith(("darknet", "mobilenet", "seresnet50.timm_a3")):
            assert model.image_shape == (entry.image_size, entry.image_size, 3)


def test_layouts():
    """Each model knows the layout of its publisher, and has the fields that the layout asks for."""
    for tag, entry in CLASSIFIERS.items():
        if tag.endswith(".darknet"):  # its numbers have no names, only an order
            continue
        model, publisher = create(entry), tag.rpartition(".")[2].partition("_")[0]
        names = {publisher, "keras.io" if publisher == "keras" else "torch"}
        fitting = [
            name
            for name, layout in layouts.for_model(model).items()
            if name.split()[0] in names
            and all(getattr(model, field) == value for field, value in layout.fields.items())
        ]
        assert fitting, tag


@pytest.mark.parametrize("tag", APPLICATIONS)
def test_keras_source(tag):
    """Compares with the source's get_file calls, of which the first is for the weights with the head."""
    entry, module = ENTRIES[tag], inspect.getmodule(getattr(keras.applications, APPLICATIONS[tag]))
    if tag.startswith("resnet"):
        name = entry.file.partition("_")[0]
        source = inspect.getmodule(keras.applications.ResNet50)
        assert entry.md5 == source.WEIGHTS_HASHES[name][0]
        assert entry.url == f"{source.BASE_WEIGHTS_PATH}{name}_weights_tf_dim_ordering_tf_kernels.h5"
        return
    tree = ast.parse(inspect.getsource(module))
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "file_hash")
    assert entry.md5 == min(keywords, key=lambda node: node.lineno).value.value
    assert entry.file in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    url = module.WEIGHTS_PATH if hasattr(module, "WEIGHTS_PATH") else module.BASE_WEIGHT_URL + entry.file
    assert entry.url == url


@pytest.mark.parametrize(
    ("model", "width", "size"),
    [
        ("mobilenet_v1", 0.75, 192),
        ("mobilenet_v2", 1.0, 224),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [
                *(("mobilenet_v1", width, size) for width, size in [(0.25, 128), (0.5, 160), (1.0, 224)]),
                *(("mobilenet_v2", width, size) for width, size in [(0.35, 96), (0.5, 128), (1.3, 224)]),
            ]
        ),
    ],
)
def test_keras_mobilenets(monkeypatch, model, width, size):
    """Compares with the download that Keras asks for."""
    asked = []

    def get_file(name, url, **options):
        asked.append((name, url, options.get("file_hash")))
        raise InterruptedError

    monkeypatch.setattr(inspect.getmodule(MOBILENETS[model]).file_utils, "get_file", get_file)
    with pytest.raises(InterruptedError):
        MOBILENETS[model](alpha=width, input_shape=(size, size, 3))
    entry = ENTRIES[f"{model}.keras" if (width, size) == (1.0, 224) else f"{model}_{width}_{size}.keras"]
    assert asked == [(entry.file, entry.url, entry.md5)]
    assert entry.image_size == size
    assert entry.fields.get("width", 1.0) == width


def test_mobilenets_figures():
    """A wider network, or one for larger images, is more accurate."""
    for model in MOBILENETS:
        of = {
            (entry.fields.get("width", 1.0), entry.image_size): (entry.top1, entry.top5)
            for tag, entry in ENTRIES.items()
            if entry.model == model and tag.endswith(".keras")
        }
        assert len(of) == {"mobilenet_v1": 16, "mobilenet_v2": 22}[model]
        for (width, size), figures in of.items():
            for (other_width, other_size), better in of.items():
                if other_width >= width and other_size >= size and (width, size) != (other_width, other_size):
                    assert better[0] > figures[0]
                    assert better[1] >= figures[1]


@pytest.mark.parametrize("tag", [*APPLICATIONS, "mobilenet_v1.keras", "mobilenet_v2.keras"])
def test_keras_preprocessing(tag):
    function = MOBILENETS.get(tag.removesuffix(".keras")) or getattr(keras.applications, APPLICATIONS.get(tag, ""))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
    theirs = inspect.getmodule(function).preprocess_input(pixels.copy())
    np.testing.assert_allclose(weights.preprocess(pixels, ENTRIES[tag].preprocess), theirs, atol=1e-5)


def test_file_that_lies_here(shared, tmp_path, monkeypatch):
    """The published file passes, one with a flipped bit does not."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path))
    path = shared / "weights" / "mobilenet_7_5_224_tf.h5"
    entry = download.by_file_name(path.name)
    assert entry.tag == "mobilenet_v1_0.75_224.keras"
    download.verify(path, entry)
    content = bytearray(path.read_bytes())
    content[5_000_000] ^= 1
    damaged = tmp_path / path.name
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged or another file"):
        download.verify(damaged, entry)
    assert entry.fields == {"width": 0.75}


@pytest.mark.parametrize(("tag", "known"), [("yolov3.darknet", 248_007_048), ("yolov3_tiny.darknet", 35_434_956)])
def test_darknets_file_fits_the_model(tag, known):
    """The model has as many numbers as the publisher's file, whose size in bytes is known of these."""
    entry = ENTRIES[tag]
    structure = rules.structure(create(entry), (entry.image_size, entry.image_size, 3))
    assert 4 * sum(math.prod(slot.shape) for _, slot in in_order.in_order(structure)) + 20 == known


def test_cards_of_detectors_and_of_darknets_classifiers():
    card = serving.published_card(ENTRIES["yolov3.darknet"])
    assert (card.task, card.fit, card.preprocess, len(card.classes)) == ("detect", "squeeze", "unit", 80)
    assert card.module().num_classes == 80
    card = serving.published_card(ENTRIES["ssd300_vgg16.torchvision"])
    assert (card.fit, card.image_size, len(card.classes), card.classes[89]) == ("squeeze", 300, 90, "toothbrush")
    assert serving.published_card(ENTRIES["yolov2_voc.darknet"]).classes[11] == "dog"
    card = serving.published_card(ENTRIES["deeplabv3_resnet50.torchvision"])
    assert (card.task, card.shape, card.classes[12]) == ("segment", (520, 520, 3), "dog")
    assert card.module().aux
    card = serving.published_card(ENTRIES["darknet53.darknet"])
    assert (card.task, card.fit, card.resize, card.image_size) == ("classify", "crop", 256, 256)
    assert card.classes[:2] == ("n02119789 kit_fox", "n02100735 English_setter")
    assert serving.published_card(ENTRIES["resnet50.keras"]).classes[0] == "n01440764 tench"


def test_a_detector_is_no_base():
    with pytest.raises(UserError, match=r"--weights yolov3.darknet is a detector: a base is a classifier"):
        settings.Base("yolov3.darknet").entry()
    assert settings.Base("darknet53.darknet").entry().image_size == 256
