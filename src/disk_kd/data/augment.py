"""Augmentation of a batch of uint8 images on its own device: crop, flip, AutoAugment, cutout.

The result is a function of (image, seed): neither the batch, its order nor any global random state
enters. The order is that of the DiSK paper's CIFAR runs.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from disk_kd.data.autoaugment import auto_augment
from disk_kd.data.remap import remap
from disk_kd.data.seeds import integers
from disk_kd.errors import ConfigError, nearest

AutoAugmentName = Literal["none", "cifar10"]

# Each draw keeps its slot, so that switching one step off does not change the others.
_CROP_Y, _CROP_X, _FLIP, _CUTOUT_Y, _CUTOUT_X, _AUTO_AUGMENT = range(6)


@dataclass(frozen=True)
class Augment:
    """What is done to a training image; the defaults do nothing.

    Attributes:
        crop_padding: pixels added on each side before a random crop of the image's own size.
        crop_fill: grey level 0 … 255 of those pixels.
        flip: mirror left to right half of the time.
        auto_augment: the policy's name.
        cutout: side in pixels of the square that is painted over; its centre is uniform over the
            image, the rest of it that falls outside is lost (DeVries and Taylor, arXiv 1708.04552).

    Raises:
        ConfigError: for a value out of range.
    """

    crop_padding: int = 0
    crop_fill: int = 128
    flip: bool = False
    auto_augment: AutoAugmentName = "none"
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment.{name} is a number of pixels >= 0, got {getattr(self, name)}")
        if not 0 <= self.crop_fill <= 255:
            raise ConfigError(f"augment.crop_fill is a grey level 0 … 255, got {self.crop_fill}")
        if self.auto_augment not in get_args(AutoAugmentName):
            valid = nearest(self.auto_augment, get_args(AutoAugmentName))
            raise ConfigError(f"augment.auto_augment names a policy, got {self.auto_augment!r}; {valid}")


def augment(images: Tensor, seeds: Tensor, settings: Augment, cutout_fill: Tensor | None = None) -> Tensor:
    """Augments each image by its own seed.

    Args:
        images: uint8 (B, C, H, W), with 1 or 3 channels for AutoAugment.
        seeds: int64 (B,) of `sample_seeds`, on the same device.
        settings: which steps, and how strong.
        cutout_fill: uint8 (C,), the colour of the cut-out square; `settings.crop_fill` without it. The
            loader gives the mean it normalises by: the square is then 0 to half a grey level.

    Returns:
        uint8 (B, C, H, W); the images themselves when no step is on.
    """
    if settings.crop_padding or settings.flip:
        images = _crop_and_flip(images, seeds, settings)
    if settings.auto_augment == "cifar10":
        images = auto_augment(images, seeds, _AUTO_AUGMENT)
    if settings.cutout:
        fill = images.new_full((images.shape[1],), settings.crop_fill) if cutout_fill is None else cutout_fill
        images = _cutout(images, seeds, settings.cutout, fill)
    return images


def _crop_and_flip(images: Tensor, seeds: Tensor, settings: Augment) -> Tensor:
    height, width = images.shape[-2:]
    padding = settings.crop_padding
    top = integers(seeds, _CROP_Y, 2 * padding + 1) - padding
    left = integers(seeds, _CROP_X, 2 * padding + 1) - padding
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if settings.flip:
        mirrored = integers(seeds, _FLIP, 2).bool()
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows = torch.arange(height, device=images.device) + top[:, None]
    return remap(images, rows[:, :, None], (columns + left[:, None])[:, None, :], settings.crop_fill)


def _cutout(images: Tensor, seeds: Tensor, size: int, fill_C: Tensor) -> Tensor:
    height, width = images.shape[-2:]

    def hidden(slot: int, length: int) -> Tensor:
        start = integers(seeds, slot, length)[:, None] - size // 2
        position = torch.arange(length, device=images.device)
        return (position >= start) & (position < start + size)

    square = hidden(_CUTOUT_Y, height)[:, None, :, None] & hidden(_CUTOUT_X, width)[:, None, None, :]
    painted = square.to(images.dtype)
    # arithmetic on bytes is many times faster than torch.where with a broadcast mask
    return (images * (1 - painted)).add_(painted * fill_C.view(1, -1, 1, 1))
