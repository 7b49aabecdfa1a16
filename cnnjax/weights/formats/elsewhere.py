"""Files of other kinds than are read here: the names of their kinds, and the ways from them to weights."""

import re
from collections.abc import Callable
from typing import NamedTuple

from cnnjax import text
from cnnjax.weights.formats.content import Signature

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,80})", re.IGNORECASE)
_ARRAYS = 'save its arrays under their torch or Keras names with numpy.savez("w.npz", **arrays)'


class _Kind(NamedTuple):
    """A kind of file: what recognizes it, and the end of a sentence that begins with its path."""

    recognizes: Callable[[Signature], bool]
    says: Callable[[Signature], str]


def _begins(*magics: bytes) -> Callable[[Signature], bool]:
    return lambda file: file.head.startswith(magics)


def _ends(*suffixes: str) -> Callable[[Signature], bool]:
    return lambda file: file.path.name.lower().endswith(suffixes)


def _holds(*patterns: str) -> Callable[[Signature], bool]:
    return lambda file: file.path.is_dir() and any(next(file.path.glob(pattern), None) for pattern in patterns)


def _is_onnx(file: Signature) -> bool:
    # A protobuf: field 1 is the version, a small number; the next is the producer, the domain or the graph.
    head = file.head
    return len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


def _pointer(file: Signature) -> str:
    size = re.search(rb"^size (\d{1,15})$", file.head, re.MULTILINE)
    of = f" to {int(size[1]):,} bytes" if size else ""
    return f"is a pointer of Git LFS{of}, not the file itself: run `git lfs pull` where it was cloned, or download it"


def _page(file: Signature) -> str:
    title = _TITLE.search(file.head)
    named = f' with the title "{text.one_line(title[1].decode(errors="replace")).strip()}"' if title else ""
    return f"is a web page{named}, not a file of weights: download the file itself, by a browser or the site's own tool"


def _always(says: str) -> Callable[[Signature], str]:
    return lambda file: says


_KINDS = (
    _Kind(_begins(_LFS), _pointer),
    _Kind(lambda file: bool(_PAGE.match(file.head)), _page),
    _Kind(_begins(b"\x93NUMPY"), _always(f"is a single array of NumPy, without a name: {_ARRAYS}")),
    _Kind(
        lambda file: file.head[4:8] == b"TFL3",
        _always("is a TensorFlow Lite model, made from other weights: take the Keras file that it was converted from"),
    ),
    _Kind(
        lambda file: _ends(".onnx")(file) or _is_onnx(file),
        _always(
            "is an ONNX model: take the torch or Keras file that it was exported from, or, with the package onnx, save "
            "{x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer} with numpy.savez"
        ),
    ),
    _Kind(
        _holds("saved_model.pb", "saved_model.pbtxt"),
        _always(
            "is a TensorFlow SavedModel: with the package tf_keras, "
            'tf_keras.models.load_model(path).save_weights("w.h5") writes its weights'
        ),
    ),
    _Kind(
        lambda file: _holds("*.index")(file) or _ends(".index", ".data-00000-of-00001", ".ckpt.meta")(file),
        _always(f"is a checkpoint of TensorFlow: read it with tensorflow.train.load_checkpoint(path), then {_ARRAYS}"),
    ),
    _Kind(
        _ends(".caffemodel", ".prototxt"),
        _always(
            "is of Caffe: take Keras' or torchvision's file of the same network (weights.published()), or read it with "
            f"OpenCV 4, cv2.dnn.readNetFromCaffe(prototxt, caffemodel).getParam(layer), and {_ARRAYS}"
        ),
    ),
    _Kind(
        _ends(".msgpack"),
        _always(f"is of flax.serialization: read it with msgpack_restore, then {_ARRAYS}"),
    ),
    _Kind(
        _begins(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"),
        _always("is compressed: unpack it, then give the file of weights in it"),
    ),
)


def route(file: Signature) -> str | None:
    """The end of a sentence about a known kind of file that is not read, after its path; None for any other file."""
    return next((kind.says(file) for kind in _KINDS if kind.recognizes(file)), None)
