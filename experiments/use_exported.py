"""Runs a network that export.py wrote, with only jax, NumPy and Pillow: this file works without the repository.

python experiments/use_exported.py runs/export-flowers/network.stablehlo photo.jpg other.jpg
"""

import json
import sys
from pathlib import Path

import jax.export
import numpy as np
from PIL import Image, ImageOps


def prepare(image: Image.Image, about: dict) -> np.ndarray:
    """uint8 [s, s, c] as network.json describes: "fit" is the way to make the image a square of "image_size"."""
    size, shorter = about["image_size"], about["resize"]
    resample = Image.Resampling[about["resample"].upper()]
    image = ImageOps.exif_transpose(image).convert("RGB" if about["channels"] == 3 else "L")
    width, height = image.size
    short = min(width, height)
    if about["fit"] == "squeeze":  # the whole image, proportions lost
        image = image.resize((size, size), resample)
    elif about["fit"] == "square":  # the largest central square
        left, top = (width - short) // 2, (height - short) // 2
        image = image.resize((size, size), resample, (left, top, left + short, top + short))
    elif about["fit"] == "crop":  # shorter side to "resize", then the center
        image = image.resize((int(shorter * width / short), int(shorter * height / short)), resample)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    else:  # center: the same with another rounding
        factor = size / short
        image = image.resize((max(size, round(width * factor)), max(size, round(height * factor))), resample)
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, about["channels"])


def main(program: Path, photos: list[str]) -> None:
    """Prints a line of JSON for each image."""
    network = jax.export.deserialize(bytearray(program.read_bytes()))
    about = json.loads(program.with_suffix(".json").read_text())
    images = np.stack([prepare(Image.open(photo), about) for photo in photos])
    said = {name: np.asarray(x) for name, x in network.call(images).items()}
    for i, photo in enumerate(photos):
        best = said["probabilities"][i].argsort()[::-1][:5]
        line = {"file": photo, "scores": {about["classes"][k]: float(said["probabilities"][i, k]) for k in best}}
        if "boxes" in said:  # xyxy as shares of the image's sides
            line["box"] = (said["boxes"][i] / about["image_size"]).round(4).tolist()
        print(json.dumps(line))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
