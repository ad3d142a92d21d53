from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disk_kd.data.decode import Reading, check_memory, load_images, to_pixels
from disk_kd.errors import DataError


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_are_those_of_the_file():
    pixels = picture(5, 7)
    assert np.array_equal(to_pixels(io.BytesIO(png(pixels)), "a.png", None), pixels.transpose(2, 0, 1))


def test_own_size_is_not_resampled():
    pixels = picture(6, 6)
    assert np.array_equal(to_pixels(Image.fromarray(pixels), "a", 6), pixels.transpose(2, 0, 1))


def test_orientation_of_the_camera_is_applied():
    pixels = picture(4, 6)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    turned = to_pixels(file, "a.png", None)
    assert np.array_equal(turned, np.rot90(pixels, -1).transpose(2, 0, 1))


def test_shorter_side_is_scaled_and_the_longer_cropped_at_the_centre():
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200
    assert np.array_equal(to_pixels(Image.fromarray(pixels), "a", 4), np.full((3, 4, 4), 200))
    assert (to_pixels(Image.fromarray(pixels), "a", 2) > 150).all()


def test_smaller_images_are_antialiased():
    checkerboard = ((np.indices((32, 32)).sum(0) % 2) * 255).astype(np.uint8)
    small = to_pixels(Image.fromarray(checkerboard), "a", 8, "L")
    assert small.shape == (1, 8, 8)
    assert abs(small.astype(int) - 127).max() <= 8


def test_grey_files_become_colour():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(to_pixels(io.BytesIO(png(grey)), "a", None), np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cat/1.png cannot be read as an image: its format is not known"),
        (png(picture(64, 64))[:200], "cat/1.png cannot be read as an image: .*truncated"),
        (png(np.ones((4, 4), np.uint16)), r"cat/1.png cannot be read as an image: .*\(mode I;16\); to scale them"),
    ],
)
def test_an_unreadable_image_is_named(content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        to_pixels(io.BytesIO(content), "cat/1.png", None)


def test_palettes_with_transparency_keep_their_colours(recwarn: pytest.WarningsRecorder):
    image = Image.fromarray(picture(6, 6)).quantize(8)
    for transparency in (0, bytes(range(8))):
        file = io.BytesIO()
        image.save(file, "PNG", transparency=transparency)
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(to_pixels(file, "a.png", None), expected)
    assert not recwarn.list


def test_formats_that_start_programs_are_not_opened(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read as an image: its format is not known"):
        to_pixels(io.BytesIO(eps), "cat/1.png", None)


def test_images_are_loaded_by_number():
    pixels = [np.full((3, 3, 3), i % 256, dtype=np.uint8) for i in range(600)]
    files = [png(image) for image in pixels]
    images, _ = load_images(files.__getitem__, [str(i) for i in range(600)], torch.arange(599, 0, -1), Reading())
    assert images.shape == (599, 3, 3, 3)
    assert torch.equal(images[:, 0, 0, 0].long(), torch.arange(599, 0, -1) % 256)


def test_images_of_several_sizes_need_a_size():
    files = [png(picture(4, 4)), png(picture(4, 5))]
    with pytest.raises(DataError, match=r"images differ in size: a is 4x4, b is 5x4; give data.image_size"):
        load_images(files.__getitem__, ["a", "b"], torch.arange(2), Reading())
    assert load_images(files.__getitem__, ["a", "b"], torch.arange(2), Reading(3))[0].shape == (2, 3, 3, 3)


def test_a_missing_file_is_named(tmp_path: Path):
    names = [str(tmp_path / "gone.png")]
    with pytest.raises(DataError, match=r"gone.png cannot be read: No such file"):
        load_images(lambda i: Path(names[i]).read_bytes(), names, torch.tensor([0]), Reading())


def test_more_than_memory_is_refused_before_anything_is_decoded():
    with pytest.raises(DataError, match=r"2 images of 3x2000000x2000000 need 22351.7 GiB of memory, .* are available"):
        load_images(lambda i: b"", ["a", "b"], torch.arange(2), Reading(2_000_000))
    check_memory(10, 3, 32)
