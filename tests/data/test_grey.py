"""Grey images of more than 8 bits: refused, or scaled to 8 where data.grey_bits says how many bits they use."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disk_kd.data import load_dataset
from disk_kd.data.decode import to_pixels
from disk_kd.errors import ConfigError, DataError

LEVELS = np.array([[0, 128, 129], [257, 4095, 32768], [65278, 65406, 65535]], np.uint16)
SCALED = np.round(LEVELS / 257).astype(np.uint8)  # [[0, 0, 1], [1, 16, 128], [254, 254, 255]]


def image_file(kind: str, levels: np.ndarray = LEVELS, mode: str | None = None) -> io.BytesIO:
    file = io.BytesIO()
    (Image.fromarray(levels) if mode is None else Image.fromarray(levels.astype(np.int32))).save(file, kind)
    file.seek(0)
    return file


@pytest.mark.parametrize(("kind", "mode"), [("PNG", None), ("TIFF", None), ("TIFF", "I"), ("PPM", None)])
def test_the_whole_range_becomes_8_bits(kind: str, mode: str | None):
    pixels = to_pixels(image_file(kind, mode=mode), "a", None, grey_bits=16)
    assert np.array_equal(pixels, np.stack([SCALED] * 3))


def test_bytes_in_the_other_order_are_the_same():
    big = Image.frombytes("I;16B", (3, 3), LEVELS.astype(">u2").tobytes())
    assert np.array_equal(to_pixels(big, "a", None, "L", grey_bits=16), SCALED[None])


def test_fewer_bits_are_scaled_by_their_own_range():
    levels = np.array([[0, 8, 9], [2048, 4087, 4095]], np.uint16)
    expected = np.round(levels.astype(float) * 255 / 4095)
    assert np.array_equal(to_pixels(image_file("PNG", levels), "a", None, "L", grey_bits=12)[0], expected)


def test_a_value_of_more_bits_is_refused():
    with pytest.raises(DataError, match=r"a cannot be read .* value 65535, data\.grey_bits=12 goes from 0 to 4095"):
        to_pixels(image_file("PNG"), "a", None, grey_bits=12)
    negative = Image.fromarray(np.array([[-1]], np.int32))
    with pytest.raises(DataError, match=r"it has the grey value -1, data\.grey_bits=16 goes from 0 to 65535"):
        to_pixels(negative, "a", None, grey_bits=16)


def test_fractions_have_no_known_range():
    with pytest.raises(DataError, match="its pixels are of mode F, whole numbers are expected"):
        to_pixels(Image.fromarray(np.ones((2, 2), np.float32)), "a", None, grey_bits=16)


def test_images_of_8_bits_stay_as_they_are():
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(to_pixels(Image.fromarray(pixels), "a", None, "L", grey_bits=12)[0], pixels)


def test_the_camera_is_turned():
    image = Image.fromarray(LEVELS)
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert np.array_equal(to_pixels(file, "a", None, "L", grey_bits=16)[0], np.rot90(SCALED, -1))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with 16-bit grey images of two classes, and a root with a tar of it."""
    for number in range(6):
        path = tmp_path / "scans" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(LEVELS + np.uint16(number) * 257 * (LEVELS < 60000)).save(path)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "train.tar", "w") as tar:
        tar.add(tmp_path / "scans" / "train", "train")
    return tmp_path


@pytest.mark.parametrize("root", ["scans", "packed"])
@pytest.mark.parametrize("stream", [False, True])
def test_folders_and_tars_are_scaled(scans: Path, root: str, stream: bool):
    options = {"root": scans / root, "image_size": 3, "validation": 0, "stream": stream, "workers": 0}
    dataset = load_dataset("folder", grey_bits=16, **options)  # type: ignore[arg-type]
    assert torch.equal(dataset.train.pictures(torch.tensor([0]))[0, 1], torch.from_numpy(SCALED))
    other = load_dataset("folder", grey_bits=16, **(options | {"image_size": 2}))  # type: ignore[arg-type]
    assert dataset.fingerprint() != other.fingerprint()
    with pytest.raises(DataError, match=r"0\.png cannot be read .*\(mode I;16\); to scale them give data\.grey_bits"):
        load_dataset("folder", **options).train.pictures(torch.tensor([0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_the_fingerprint_tells_the_bits(tmp_path: Path, stream: bool):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.full((3, 3), 4000, np.uint16)).save(tmp_path / "train" / name / "0.png")
    options = {"root": tmp_path, "image_size": 3, "validation": 0, "stream": stream}
    twelve, sixteen = (load_dataset("folder", grey_bits=bits, **options) for bits in (12, 16))  # type: ignore[arg-type]
    assert twelve.fingerprint() != sixteen.fingerprint()


def test_images_of_a_streamed_hugging_face_dataset_are_not_clipped(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(LEVELS)] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    (tmp_path / "d" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "d" / "data" / "train-0.parquet"))
    for reader in ("hfids", "hfds"):
        options = {"root": tmp_path / "cache", "validation": 0, "download": True}
        name = f"{reader}/{tmp_path / 'd'}"
        dataset = load_dataset(name, grey_bits=16, **options)  # type: ignore[arg-type]
        assert torch.equal(dataset.train.pictures(torch.tensor([1]))[0, 0], torch.from_numpy(SCALED))
        with pytest.raises(DataError, match=r"to scale them give data\.grey_bits"):
            load_dataset(name, **options)  # type: ignore[arg-type]


def test_bits_that_do_not_fit_are_refused():
    for bits in (8, 17):
        with pytest.raises(ConfigError, match=rf"data\.grey_bits must be from 9 to 16, or null, not {bits}"):
            load_dataset("digits", grey_bits=bits)
    with pytest.raises(ConfigError, match=r"the images of digits have 8 bits: leave data\.grey_bits"):
        load_dataset("digits", grey_bits=16)
