"""5,000 damaged image files of all kinds: an array or the one error, and never much time or memory."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, features

from cnnjax.data.formats import images

COUNT = 5000
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def samples() -> dict[str, bytes]:
    """Small files of all kinds, by name."""
    color = Image.fromarray(PIXELS)
    turned, gray = Image.Exif(), color.convert("L")
    turned[0x0112] = 6
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8 | PIXELS[..., 1])
    alpha = Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]]))
    share = Image.fromarray(PIXELS[..., 0].astype(np.float32) / 255)
    kinds = {
        "jpeg": (color, "JPEG", {"exif": turned}),
        "progressive": (color, "JPEG", {"progressive": True}),
        "cmyk": (color.convert("CMYK"), "JPEG", {}),
        "mpo": (color, "MPO", {"save_all": True, "append_images": [color.rotate(180)]}),
        "png": (alpha, "PNG", {"exif": turned}),
        "png_palette": (color.quantize(16), "PNG", {"transparency": 0}),
        "png_deep": (deep, "PNG", {}),
        "gif": (color, "GIF", {"save_all": True, "append_images": [color.rotate(180)]}),
        "bmp": (color, "BMP", {}),
        "bmp_palette": (color.quantize(16), "BMP", {}),
        "webp": (alpha, "WEBP", {}),
        "webp_lossless": (color, "WEBP", {"lossless": True, "exif": turned}),
        "ppm": (color, "PPM", {}),
        "tiff_deep": (deep, "TIFF", {}),
        "tiff_float": (share, "TIFF", {}),
        "tiff_bits": (gray.convert("1"), "TIFF", {"compression": "group4"}),
        "qoi": (color, "QOI", {}),
    }
    for compression in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate"):
        kinds[f"tiff_{compression}"] = (color, "TIFF", {"compression": compression, "exif": turned})
    for name, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")):
        if features.check(feature):
            kinds[name] = (color, name, {})
    encoded = {}
    for name, (image, form, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded[name] = buffer.getvalue()
    return encoded


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Copy of ``data`` that is cut, has other bytes, most of them near the begin, or more or fewer bytes."""
    new = bytearray(data)
    if rng.random() < 0.2:
        del new[rng.integers(1, len(new)) :]
    for _ in range(rng.integers(1, 7)):
        place = min(int(rng.exponential(len(new) / 5)), len(new) - 1)
        kind = rng.random()
        if kind < 0.6:
            new[place] = rng.integers(256)
        elif kind < 0.75:
            new[place] ^= 1 << rng.integers(8)
        elif kind < 0.85:
            new[place:place] = rng.bytes(rng.integers(1, 9))
        elif kind < 0.95:
            del new[place : place + rng.integers(1, 9)]
        else:
            new[place : place + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"])
        if not new:
            return b""
    return bytes(new)


def attempts() -> dict[str, object]:
    """Results of reading damaged files: arrays, errors, other exceptions (and the first of them), the slowest."""
    rng, kinds = np.random.default_rng(7), list(samples().items())
    found = {"arrays": 0, "errors": 0, "others": 0, "first": "", "slowest": (0.0, "")}
    for i in range(COUNT):
        name, data = kinds[i % len(kinds)]
        data = damaged(data, rng)
        started = time.perf_counter()
        try:
            pixels = images.decode(data, 1 + 2 * (i % 2), f"{name} {i}", upright=True)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            found["arrays"] += 1
        except images.CorruptImageError as error:
            named = str(error).startswith(f"{name} {i}: not a readable image (") and "\n" not in str(error)
            found["errors" if named else "others"] += 1
        except BaseException as error:
            found["others"] += 1
            found["first"] = found["first"] or f"{name} {i}: {error!r}"
        found["slowest"] = max(found["slowest"], (time.perf_counter() - started, f"{name} {i}"))
    return found


# A process of its own: its peak memory is that of reading. Of Linux' figures ru_maxrss has the parent's peak, too.
CODE = """
import json, pathlib, resource, sys, warnings
warnings.simplefilter("ignore")  # PIL's, about some of the damage
sys.path.insert(0, "tests")
import test_data_images_damaged as test
def peak():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
found = test.attempts()
print(json.dumps({**found, "bytes": peak() - before}))
"""


def test_damaged_files_give_an_array_or_the_one_error():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["others"], found
    assert found["arrays"] + found["errors"] == COUNT
    assert min(found["arrays"], found["errors"]) > COUNT / 5
    assert found["slowest"][0] < 1
    assert found["bytes"] < 2**30
