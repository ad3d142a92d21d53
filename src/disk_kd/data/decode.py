"""Image files to uint8 tensors of one size.

Shapes: N images, C channels, S side in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Literal

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from disk_kd.errors import DataError

_CHUNK = 256


def check_memory(count: int, channels: int, side: int) -> None:
    """Refuses images that would not fit.

    Raises:
        DataError: when `count` uint8 images need more than the memory now available.
    """
    needed_bytes, free_bytes = count * channels * side * side, psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise DataError(
            f"{count} images of {channels}x{side}x{side} need {needed_bytes / 2**30:.1f} GiB of memory, "
            f"{free_bytes / 2**30:.1f} GiB are available; give a smaller data.image_size or data.limit_train"
        )


def to_pixels(
    source: IO[bytes] | Image.Image, name: str, image_size: int | None, mode: Literal["RGB", "L"] = "RGB"
) -> np.ndarray:
    """Decodes one image: EXIF orientation applied, scaled and centre-cropped to a square.

    Args:
        source: an open file or a PIL image.
        name: what to call it in an error.
        image_size: the side; the shorter side is scaled to it (bicubic, antialiased). None leaves the size.
        mode: colour or grey.

    Returns:
        uint8 (C, H, W).

    Raises:
        DataError: when it cannot be decoded.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        if image.mode.startswith(("I", "F")):  # PIL would clip these, not scale them
            raise ValueError(f"its pixels are of mode {image.mode}, 8 bits a channel are expected")
        image = ImageOps.exif_transpose(image).convert(mode)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} cannot be read as an image: its format is not known") from error
    except Exception as error:  # PIL's decoders raise errors of many kinds for a damaged file
        raise DataError(f"{name} cannot be read as an image: {error}") from error
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def load_images(read: Callable[[int], bytes], names: Sequence[str], ids: Tensor, size: int | None) -> Tensor:
    """Decodes the images `ids` in threads.

    Args:
        read: an image's number to its file's bytes; called from several threads.
        names: each image's path, for errors.
        ids: int64 (N,), N >= 1.
        size: see `to_pixels`.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: when an image cannot be read, sizes differ without `size`, or memory is short.
    """
    numbers = ids.tolist()

    def pixels(number: int) -> np.ndarray:
        try:
            content = read(number)
        except OSError as error:
            raise DataError(f"{names[number]} cannot be read: {error.strerror}") from error
        return to_pixels(io.BytesIO(content), names[number], size)

    if size is not None:
        check_memory(len(numbers), 3, size)
    first = pixels(numbers[0])
    check_memory(len(numbers), 3, max(first.shape[1:]))
    images = np.empty((len(numbers), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for position in range(start, min(start + _CHUNK, len(numbers))):
            image = pixels(numbers[position])
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
    return torch.from_numpy(images)
