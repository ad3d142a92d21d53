"""Decoding of image files to uint8 tensors of one size.

Shapes: N images, C channels, S side in pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import IO, Literal

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from disk_kd.errors import DataError

_CHUNK = 256

_FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k"),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
ENDINGS = tuple(ending for endings in _FORMATS.values() for ending in endings)
"""Endings of image files, in lower case. The content of a file may have any of the formats."""

MEND = "replace it, or give data.skip_unreadable=true"

Mode = Literal["RGB", "L"]


@dataclass(frozen=True)
class Reading:
    """Settings for decoding image files.

    Attributes:
        image_size: side of the decoded images; None: as in the files.
        crop_pct: fraction of the shorter side that the centre crop keeps, in (0, 1].
        skip_unreadable: skip unreadable images with a warning; False: raise an error.
        grey_bits: number of bits that grey images of more than 8 bits use, as for `open_picture`.
    """

    image_size: int | None = None
    crop_pct: float = 1.0
    skip_unreadable: bool = False
    grey_bits: int | None = None


def check_memory(count: int, channels: int, side: int) -> None:
    """Check that images fit into memory.

    Raises:
        DataError: `count` uint8 images need more than the available memory.
    """
    needed_bytes, free_bytes = count * channels * side * side, psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise DataError(
            f"{count} images of {channels}x{side}x{side} need {needed_bytes / 2**30:.1f} GiB of memory, "
            f"{free_bytes / 2**30:.1f} GiB are available; give data.stream=true or a smaller data.image_size"
        )


def open_picture(
    source: IO[bytes] | Image.Image, name: str, mode: Mode = "RGB", grey_bits: int | None = None
) -> Image.Image:
    """Decodes one image and applies its EXIF orientation.

    Args:
        source: an open file or a PIL image.
        name: name of the image in errors.
        mode: colour or grey.
        grey_bits: number b of bits that grey images of more than 8 bits use. A value v becomes round(255 v / (2^b -
            1)). Images of 8 bits are unchanged. None: images of more than 8 bits are refused.

    Raises:
        DataError: the image cannot be decoded, or its grey values need more than `grey_bits`.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=_formats())
        if image.mode.startswith(("I", "F")):  # PIL would clip these, not scale them
            image = _of_8_bits(image, grey_bits)
        image.info.pop("transparency", None)  # colours stay as they are; PIL would warn of some palettes
        return ImageOps.exif_transpose(image).convert(mode)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} cannot be read as an image: its format is not known") from error
    except Exception as error:  # PIL's decoders raise errors of many kinds for a damaged file
        raise DataError(f"{name} cannot be read as an image: {error or type(error).__name__}") from error


def _of_8_bits(image: Image.Image, grey_bits: int | None) -> Image.Image:
    """A grey image of more than 8 bits, rotated upright and scaled to 8 bits."""
    if image.mode.startswith("F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whole numbers are expected")
    if grey_bits is None:
        raise ValueError(
            f"its grey values have more than 8 bits (mode {image.mode}); to scale them give data.grey_bits, 16 or the "
            "number of bits that they use"
        )
    levels, most = np.asarray(ImageOps.exif_transpose(image)), 2**grey_bits - 1
    for level in (int(levels.min()), int(levels.max())):
        if not 0 <= level <= most:
            raise ValueError(f"it has the grey value {level}, data.grey_bits={grey_bits} goes from 0 to {most}")
    return Image.fromarray(((levels.astype(np.int32) * 255 + most // 2) // most).astype(np.uint8))


@cache
def _formats() -> tuple[str, ...]:
    """The formats of `_FORMATS` that this Pillow supports. Others, such as EPS, would start programs."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def centre_crop(image: Image.Image, image_size: int, crop_pct: float = 1.0) -> Image.Image:
    """The centred square with side `crop_pct` times the shorter side, resized to `image_size` (bicubic)."""
    if crop_pct == 1 and image.size == (image_size, image_size):
        return image
    # Pillow's bleed is a share of each side that is cut off at each end.
    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC, bleed=(1 - crop_pct) / 2)


def to_pixels(
    source: IO[bytes] | Image.Image,
    name: str,
    image_size: int | None,
    mode: Mode = "RGB",
    grey_bits: int | None = None,
) -> np.ndarray:
    """Decodes one image, applies its EXIF orientation, scales it and crops it to a centred square.

    Args:
        source, name, mode, grey_bits: as for `open_picture`.
        image_size: the side. The shorter side is scaled to it (bicubic, antialiased). None keeps the size.

    Returns:
        uint8 (C, H, W).

    Raises:
        DataError: the image cannot be decoded.
    """
    image = open_picture(source, name, mode, grey_bits)
    if image_size is not None:
        image = centre_crop(image, image_size)
    return as_array(image)


def as_array(image: Image.Image) -> np.ndarray:
    """The pixels as contiguous uint8 (C, H, W)."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def load_images(
    read: Callable[[int], bytes], names: Sequence[str], ids: Tensor, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Decodes the images `ids` in threads.

    Args:
        read: maps the number of an image to the bytes of its file. It is called from several threads.
        names: path of each image, for errors.
        ids: int64 (N,), N >= 1.
        reading: how images are decoded, and what happens to unreadable ones.

    Returns:
        uint8 (n, 3, H, W), and the int64 (n,) of `ids` that they belong to. Unreadable images may be missing.

    Raises:
        DataError: an image cannot be read, sizes differ without `reading.image_size`, or memory is short.
    """
    numbers, size = ids.tolist(), reading.image_size

    def pixels(number: int) -> np.ndarray | None:
        try:
            image = read_picture(read, names, number, reading.grey_bits)
        except DataError as error:
            if reading.skip_unreadable:
                warnings.warn(f"left out: {error}", stacklevel=2)
                return None
            raise DataError(f"{error}; {MEND}") from None
        return as_array(image if size is None else centre_crop(image, size, reading.crop_pct))

    if size is not None:
        check_memory(len(numbers), 3, size)
    first = next((image for number in numbers if (image := pixels(number)) is not None), None)
    if first is None:
        raise DataError(f"none of {len(numbers)} images can be read, such as {names[numbers[0]]}")
    check_memory(len(numbers), 3, max(first.shape[1:]))
    images = np.empty((len(numbers), *first.shape), dtype=np.uint8)
    kept = torch.ones(len(numbers), dtype=torch.bool)

    def fill(start: int) -> None:
        for position in range(start, min(start + _CHUNK, len(numbers))):
            image = pixels(numbers[position])
            if image is None:
                kept[position] = False
                continue
            if image.shape != first.shape:
                one = f"{names[numbers[0]]} is {_size(first)}"
                other = f"{names[numbers[position]]} is {_size(image)}"
                raise DataError(f"images differ in size: {one}, {other}; give data.image_size")
            images[position] = image

    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        for _ in pool.map(fill, range(0, len(numbers), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    loaded = torch.from_numpy(images)
    return (loaded, ids) if bool(kept.all()) else (loaded[kept], ids[kept])


def read_picture(
    read: Callable[[int], bytes], names: Sequence[str], number: int, grey_bits: int | None = None
) -> Image.Image:
    """One decoded image of any size. Arguments as for `load_images` and `open_picture`.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        content = read(number)
    except OSError as error:
        raise DataError(f"{names[number]} cannot be read: {error.strerror or error}") from error
    if not content:
        raise DataError(f"{names[number]} cannot be read as an image: it is empty")
    return open_picture(io.BytesIO(content), names[number], grey_bits=grey_bits)
