"""data.duplicates: copies are found, whatever they are saved as; other photos are not; ten thousand in a moment."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import duplicates
from cnnjax.data.formats import tfds


@pytest.fixture(scope="module")
def flowers(shared):
    source = tfds.tfds_split("tf_flowers", "train[:240]", shared / "data" / "tfds").fetched()
    return [source[i]["image"] for i in range(len(source))]


def prints(images, mark=""):
    return [duplicates.fingerprint(f"{mark}{i}".encode(), image) for i, image in enumerate(images)]


def copy(image, scale, quality):
    photo, content = Image.fromarray(image), io.BytesIO()
    photo.resize((round(photo.width * scale), round(photo.height * scale))).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


@pytest.mark.parametrize(("scale", "quality"), [(1, 95), (0.5, 50), (2, 70)])
def test_copies_of_photos_are_found(flowers, scale, quality):
    photos = flowers[:100]
    found = duplicates.between(
        {"train": prints(photos), "test": prints([copy(x, scale, quality) for x in photos], "c")}
    )
    assert sum(pair.place == pair.other_place for pair in found) >= 98
    assert not any(pair.same_file for pair in found)


def test_other_photos_are_not(flowers):
    assert duplicates.between({"train": prints(flowers[:120]), "test": prints(flowers[120:], "t")}) == []
    mirrored = [image[:, ::-1] for image in flowers[:120]]
    assert len(duplicates.between({"train": prints(flowers[:120]), "test": prints(mirrored, "m")})) <= 1


def test_pictures_without_edges_are_told_apart_by_their_gray():
    plain = [np.full((20, 20, channels), level, np.uint8) for channels, level in ((1, 10), (3, 12), (3, 200))]
    found = duplicates.between({"train": prints(plain[:1]), "test": prints(plain[1:], "t")})
    assert [(pair.place, pair.other_place) for pair in found] == [(0, 0)]


def test_equal_files_and_the_nearest_are_named():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (4, 9, 9, 3), np.uint8)
    first = prints(photos)
    near = photos[1].copy()
    near[0, 0] += 1
    found = duplicates.between({
        "train": first[:3],
        "valid": [duplicates.fingerprint(b"2", photos[2])],
        "test": [duplicates.fingerprint(b"new", near), first[3], first[0], duplicates.fingerprint(b"2", photos[2])],
    })  # fmt: skip
    assert found == [
        ("valid", 0, "train", 2, True),
        ("test", 0, "train", 1, False),
        ("test", 2, "train", 0, True),
        ("test", 3, "train", 2, True),
        ("test", 3, "valid", 0, True),
    ]
    assert duplicates.between({"train": first, "test": []}) == []


def test_ten_thousand_photos_take_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (10000, 2), np.uint64)
    grids = rng.integers(0, 256, (10000, 9, 9), np.uint8)
    made = [duplicates.Print(i.to_bytes(4), *each) for i, each in enumerate(zip(hashes, grids, strict=True))]
    made[9000] = made[7]._replace(digest=b"other")
    started = time.perf_counter()
    assert duplicates.between({"train": made[:8000], "test": made[8000:]}) == [("test", 1000, "train", 7, False)]
    assert time.perf_counter() - started < 10  # 0.2 s on 2 cores
