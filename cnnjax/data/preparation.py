"""Image files and arrays prepared for a network: uint8 [s, s, c], with NumPy and Pillow alone.

Training, evaluation, prediction and exported networks prepare images by this file, so that all see the same pixels.
export.py writes it beside a network as use_exported.py, a program that needs only jax, NumPy and Pillow::

    python use_exported.py network.stablehlo photo.jpg other.jpg
"""

import contextlib
import functools
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

# ---- reading ----

MODES = {1: "L", 3: "RGB"}  # channels → PIL's mode
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")  # PIL's names; and JPEG
MOST_PIXELS = 2**28 // 3  # PIL's own limit, 89 million: up to 1 GB while they are decoded and converted
_TOO_MANY = f"{MOST_PIXELS // 10**6} million pixels: make it smaller, or save it as JPEG"
MOST_COEFFICIENT_BYTES = 3 * 2**28  # of a progressive JPEG, which is held whole whatever its scale
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # brands, bytes 8 to 12 of a file
_one_large = threading.Lock()


def read(data: bytes | Path, channels: int, *, upright: bool = True, frame: int = 0) -> np.ndarray:
    """Image file → uint8 [h, w, channels]; see `eight_bit`; color is converted, what is transparent becomes white.

    A JPEG of more than `MOST_PIXELS` is scaled by 1/2, 1/4 or 1/8 while it is decoded.

    Args:
      data: the file's bytes, or its path.
      channels: 1 (luma) or 3 (RGB).
      upright: rotate the image by its EXIF orientation, as viewers do; PIL does so with a TIFF in any case.
      frame: image of an animation or a file of several pages, from 0.

    Raises:
      EOFError: there is no such frame.
      ValueError: too many pixels, or pixels without a known range.
      Exception: of any kind, as PIL's decoders raise it for damaged files.
    """
    with contextlib.ExitStack() as alone:
        with _opened(data, frame) as image:
            alone.enter_context(_alone(image))
            _scale(image)
            converted, turn = _converted(image, MODES[channels]), orientation(image) if upright else 1
        del image  # its memory is needed
        pixels = np.asarray(converted)
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return np.ascontiguousarray(_TURNS[turn](pixels)) if turn in _TURNS else pixels


def frames(data: bytes | Path) -> int:
    """Number of images in an animation or a file of several pages; 1 of others.

    Raises:
      Exception: of any kind, as `read`.
    """
    with _opened(data) as image:
        return getattr(image, "n_frames", 1)


def measure(path: bytes | Path, frame: int = 0) -> tuple[int, int, bool]:
    """(width, height) as viewers show an image, and True if `read` exchanges them without ``upright``; from its header.

    Raises:
      Exception: of any kind, as `read`.
    """
    with _opened(path, frame) as image:
        return _shown(image, _stored(image), orientation(image))


def examine(path: Path) -> tuple[int, int, bool]:
    """Result of `measure` for a file that `read` can read; decoded, JPEG at an eighth of its size, to be sure.

    Raises:
      Exception: of any kind, as `read`.
    """
    with _opened(path) as image, _alone(image):
        # A PNG tells its orientation only once it is loaded, and a second attempt to load a damaged one does not fail.
        stored, turn = _stored(image), orientation(image) if image.format == "TIFF" else None
        _scale(image, least=8)
        _converted(image, "L")
        return _shown(image, stored, turn or orientation(image))


@contextlib.contextmanager
def _opened(data: bytes | Path, frame: int = 0) -> Iterator[Image.Image]:
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        try:
            # PIL would refuse a large JPEG before it can be scaled; of its two kinds, MPO has the photo first, too.
            jpeg = head.startswith(b"\xff\xd8\xff")
            image = JpegImageFile(file) if jpeg else Image.open(file, formats=formats())
        except UnidentifiedImageError as error:
            raise ValueError(_unknown(head)) from error
        except Image.DecompressionBombError as error:  # PIL's message does not say what helps
            raise ValueError(f"it has more than {_TOO_MANY}") from error
        with image:
            if frame:
                image.seek(frame)
            strips = [box for tile in image.tile if (box := tile[1])] if image.format == "TIFF" else []
            if strips and any(max(box[i + 2] for box in strips) < _stored(image)[i] for i in (0, 1)):
                raise ValueError("its pixels end before its last row or column")  # PIL would make the others black
            yield image


@functools.cache
def formats() -> tuple[str, ...]:
    """Formats of `FORMATS` that this PIL reads; HEIF where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(head: bytes) -> str:
    if head[4:8] == b"ftyp" and head[8:12] in HEIF and "HEIF" not in formats():
        return "HEIC: pip install pillow-heif, which reads it, or save it as JPEG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis") and "AVIF" not in formats():
        return "AVIF: pip install 'pillow>=11.3', which reads it, or save it as JPEG"
    return f"damaged, or no image of a known kind: {', '.join(('JPEG', *formats()))}" if head else "an empty file"


def _pixels(image: Image.Image) -> int:
    return image.size[0] * image.size[1]


def _alone(image: Image.Image) -> contextlib.AbstractContextManager[Any]:
    """Block in which no other large image is decoded, if this one is large; so memory is bounded with many threads."""
    return _one_large if _pixels(image) > MOST_PIXELS // 2 else contextlib.nullcontext()


def _stored(image: Image.Image) -> tuple[int, int]:
    """(width, height) in the file; some versions of PIL say those of a TIFF as it is shown."""
    return (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size  # type: ignore[attr-defined]


def _scale(image: Image.Image, least: int = 1) -> None:
    """Lets PIL decode a JPEG at 1/2, 1/4 or 1/8, at most 1/``least``, where it is too large; ValueError for others."""
    (width, height), scale, held, kind = image.size, least, 0, ""
    if isinstance(image, JpegImageFile):
        if image.info.get("progressive"):
            shares = [layer[1] * layer[2] for layer in image.layer]
            held, kind = 2 * _pixels(image) * sum(shares) // max(shares), " that is not progressive"
        while _pixels(image) > MOST_PIXELS * scale**2:
            scale *= 2
        if 1 < scale <= 8 and held <= MOST_COEFFICIENT_BYTES:
            image.draft(None, (max(1, width // scale), max(1, height // scale)))
    if _pixels(image) > MOST_PIXELS:
        raise ValueError(f"{width}×{height} are more than {_TOO_MANY}{kind}")


def _shown(image: Image.Image, stored: tuple[int, int], turn: int) -> tuple[int, int, bool]:
    width, height = stored
    return (height, width, image.format != "TIFF") if turn in (5, 6, 7, 8) else (width, height, False)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it says none. PIL turns a TIFF while it is loaded, and it is 1 afterwards."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL raises any exception for damaged EXIF data; the pixels are good
        return 1


# EXIF orientation → the operation that undoes it, on [h, w, c].
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Image in PIL's mode L or RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _deep(image)
    if image.has_transparency_data:
        alpha = image if image.mode == "RGBA" else image.convert("LA" if image.mode == "La" else "RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(alpha, mask=alpha)
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _deep(image: Image.Image) -> Image.Image:
    """Image of more than 8 bits in one channel → mode L. PIL's own conversion clips instead of scaling."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 258 are the bits of a pixel, and 262 is 0 where white is 0
    values = np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        values = values.astype(np.uint16)
    pixels = eight_bit(values, tags.get(258, (16,))[0] if values.dtype.kind == "u" else 16)
    if tags.get(262) == 0:
        pixels = 255 - pixels
    if "transparency" in image.info and image.format == "PNG":
        pixels = np.where(values == image.info["transparency"], np.uint8(255), pixels)
    return Image.fromarray(pixels)


def eight_bit(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Pixels of any shape → uint8: uint8 as they are, the highest 8 of uint16's ``bits``, floats of 0 … 1 times 255.

    Raises:
      ValueError: another type, or floats that leave 0 … 1.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16 or values.dtype == ">u2":
        return (values >> (bits - 8)).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"pixels of type {values.dtype} have no fixed range: make them uint8 or uint16")
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"floats are expected in 0 … 1, got {low:g} … {high:g}: scale them, or make them uint8")
    return np.rint(values * 255).astype(np.uint8)


# ---- geometry ----

Fit = Literal["crop", "squeeze", "square", "center", "pad"]
Resample = Literal["bilinear", "bicubic", "linear"]
MOST_RATIO = 64  # of the sides of what is resized with crop and center
Window = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Geometry(NamedTuple):
    """Path of one image's pixels: a window is resized, laid on the output, and mirrored where ``flip`` is True."""

    size: tuple[int, int]  # (height, width) that the window becomes
    shape: tuple[int, int]  # (height, width) of the output
    corner: tuple[int, int] = (0, 0)  # (row, column) of the window in the output; negative where the output cuts it
    window: Window | None = None  # part of the image that is resized; None: all of it
    flip: bool = False  # mirror the output left to right
    resample: Resample = "bilinear"  # the image's filter

    def coordinates(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset (x, y), float64 [2] each, from an image of this size to the output before it is mirrored."""
        left, top, right, bottom = self.window or (0, 0, width, height)
        scale = np.array([self.size[1] / (right - left), self.size[0] / (bottom - top)])
        return scale, np.array([self.corner[1], self.corner[0]]) - np.array([left, top]) * scale


def geometry(
    fit: Fit, size: int | tuple[int, int], resize: int, resample: Resample, height: int, width: int
) -> Geometry:
    """Geometry that makes an image of ``height`` × ``width`` a square of ``size``, with pad a (height, width).

    Args:
      fit: squeeze: all of the image, its proportions lost; square: the largest central square; crop: the shorter side
        to ``resize``, then the center, as torchvision's Resize and CenterCrop; center: to ``size``, then the center;
        pad: all of the image, smaller only if it does not fit, with what is missing below and to the right.
    """
    if fit == "pad":
        rows, columns = (size, size) if isinstance(size, int) else size
        factor = min(1.0, rows / height, columns / width)
        inside = max(1, round(height * factor)), max(1, round(width * factor))
        return Geometry(inside, (rows, columns), resample=resample)
    if not isinstance(size, int):
        raise ValueError(f"{fit} makes squares, of one size, not {size}")
    short, output = min(height, width), (size, size)
    if fit == "squeeze":
        return Geometry(output, output, resample=resample)
    if fit == "square":
        top, left = (height - short) // 2, (width - short) // 2
        return Geometry(output, output, window=(left, top, left + short, top + short), resample=resample)
    # Only the middle of a long strip is resized, which is more than what is cut out: all of it could take gigabytes.
    rows, columns = min(height, MOST_RATIO * short), min(width, MOST_RATIO * short)
    left, top = (width - columns) // 2, (height - rows) // 2
    window = None if (rows, columns) == (height, width) else (left, top, left + columns, top + rows)
    if fit == "crop":
        # Sizes are truncated and halves of offsets rounded to even, as in torchvision: a pixel more changes accuracies.
        rows, columns = int(resize * rows / short), int(resize * columns / short)
        corner = -round((rows - size) / 2), -round((columns - size) / 2)
        return Geometry((rows, columns), output, corner, window, resample=resample)
    factor = size / short
    rows, columns = max(size, round(rows * factor)), max(size, round(columns * factor))
    corner = -((rows - size) // 2), -((columns - size) // 2)
    return Geometry((rows, columns), output, corner, window, resample=resample)


def moved(image: np.ndarray, geometry: Geometry, fill: int = 128) -> np.ndarray:
    """Image uint8 [h, w, 1 | 3] → the output; ``fill`` is the value of pixels from outside.

    PIL resamples, but "linear", which is between the nearest four pixels however small the output is, as OpenCV does.
    """
    (height, width), (rows, columns), (top, left) = geometry.size, geometry.shape, geometry.corner
    if geometry.resample == "linear":
        image = _between_four(image, geometry)
    elif geometry.window is not None or image.shape[:2] != geometry.size:
        pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        pil = pil.resize((width, height), Image.Resampling[geometry.resample.upper()], geometry.window)
        image = np.asarray(pil).reshape(height, width, image.shape[-1])
    image = image[max(-top, 0) : rows - top, max(-left, 0) : columns - left]
    if image.shape[:2] != geometry.shape:
        top, left = max(top, 0), max(left, 0)
        padded = np.full((rows, columns, image.shape[-1]), fill, np.uint8)
        padded[top : top + image.shape[0], left : left + image.shape[1]] = image
        image = padded
    return image[:, ::-1] if geometry.flip else image


def _between_four(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    (height, width), (rows, columns) = geometry.size, image.shape[:2]
    left, top, right, bottom = geometry.window or (0, 0, columns, rows)
    for axis, first, last, count in ((0, top, bottom, height), (1, left, right, width)):
        most = image.shape[axis] - 1
        place = (first + (np.arange(count) + 0.5) * (last - first) / count - 0.5).clip(0, most)
        low = np.minimum(place.astype(int), max(most - 1, 0))
        share = (place - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        near, far = np.take(image, low, axis), np.take(image, np.minimum(low + 1, most), axis)
        image = near + (np.float32(far) - near) * share
    return np.rint(image).astype(np.uint8)


# ---- files and arrays for a network ----

SHOWN_SCORE = 0.3  # of detections that are described and drawn


def prepare(image: Path | bytes | np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Image for a network: uint8 [s, s, c], or [h, w, c] where ``image_size`` is (h, w).

    Args:
      image: path or bytes of an image file, or an array [h, w], [h, w, 1], [h, w, 3] or, with alpha, [h, w, 4]:
        uint8, uint16 of 0 … 65535, or floats of 0 … 1.
      about: the content of network.json: "fit" (see `geometry`), "image_size", "resize", "resample", "channels".

    Raises:
      ValueError: an array of another shape, type or range.
      Exception: of any kind, as `read`.
    """
    channels = about["channels"]
    pixels = from_array(image, channels) if isinstance(image, np.ndarray) else read(image, channels)
    return moved(pixels, _geometry(about, *pixels.shape[:2]))


def _geometry(about: dict[str, Any], height: int, width: int) -> Geometry:
    return geometry(about["fit"], about["image_size"], about["resize"], about["resample"], height, width)


def from_array(values: np.ndarray, channels: int) -> np.ndarray:
    """Array as for `prepare` → uint8 [h, w, channels], as from a file with these pixels."""
    planes = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or planes not in (1, 3, 4) or 0 in values.shape:
        raise ValueError(f"an image is expected as [h, w] or [h, w, 1, 3 or 4], got the shape {list(values.shape)}")
    pixels = np.ascontiguousarray(eight_bit(values))
    image = Image.fromarray(pixels.reshape(values.shape[:2]) if planes == 1 else pixels)
    return np.asarray(_converted(image, MODES[channels])).reshape(*values.shape[:2], channels)


def _described(said: dict[str, np.ndarray], about: dict[str, Any], photo: Path) -> dict[str, Any]:
    """Output of a network for one image, for JSON; boxes are xyxy as shares of the sides of what `prepare` gives."""
    if "segmentation" in said:
        width, height, _ = measure(photo)
        rows, columns = _geometry(about, height, width).size  # without what is padded
        labels = said["segmentation"][:rows, :columns]
        shares = np.bincount(labels.ravel(), minlength=len(about["classes"])) / labels.size
        return {"shares": {name: round(float(x), 4) for name, x in zip(about["classes"], shares, strict=True) if x}}
    boxes = (np.float64(said.get("boxes", 0)) / about["image_size"]).round(4).tolist()
    if "valid" in said:
        found = [place for place, score in enumerate(said["scores"]) if said["valid"][place] and score >= SHOWN_SCORE]
        named = [(about["classes"][said["labels"][place]], float(said["scores"][place]), place) for place in found]
        return {"objects": [{"name": n, "score": s, "box": boxes[place]} for n, s, place in named]}
    best = said["probabilities"].argsort()[::-1][:5]
    scores = {about["classes"][k]: float(said["probabilities"][k]) for k in best}
    return {"scores": scores, "box": boxes} if "boxes" in said else {"scores": scores}


def main(program: Path, photos: list[str]) -> int:
    """Prints a line of JSON for each image, and why one cannot be read; returns the number of these."""
    import jax.export

    network = jax.export.deserialize(bytearray(program.read_bytes()))
    about = json.loads(program.with_suffix(".json").read_text())
    bad = 0
    for photo in photos:
        try:
            image = prepare(Path(photo), about)
        except Exception as error:  # PIL's decoders raise any exception
            print(f"{photo}: not a readable image ({error or type(error).__name__})", file=sys.stderr)
            bad += 1
            continue
        said = {name: np.asarray(x)[0] for name, x in network.call(image[None]).items()}
        print(json.dumps({"file": photo, **_described(said, about, Path(photo))}))
    return bad


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(bool(main(Path(sys.argv[1]), sys.argv[2:])))
