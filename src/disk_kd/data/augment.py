"""Augmentation of a batch of uint8 images on its own device: crop, flip, AutoAugment, cutout.

The result is a function of (image, seed): neither the batch, its order nor any global random state
enters. The order is that of the DiSK paper's CIFAR runs. PCA lighting, whose shifts are no whole grey levels, is
left to whoever makes floats of the images (`lighting_shift`).

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from disk_kd.data.autoaugment import CIFAR10, SLOTS, Policy, auto_augment
from disk_kd.data.autoaugment_pillow import CIFAR10_PILLOW
from disk_kd.data.lighting import lighting
from disk_kd.data.remap import remap
from disk_kd.data.seeds import integers
from disk_kd.errors import ConfigError, nearest

AutoAugmentName = Literal["none", "cifar10", "cifar10-released"]
_POLICIES: dict[str, Policy] = {"cifar10": CIFAR10, "cifar10-released": CIFAR10_PILLOW}

# Each draw keeps its slot, so that switching one step off does not change the others.
_CROP_Y, _CROP_X, _FLIP, _CUTOUT_Y, _CUTOUT_X, _AUTO_AUGMENT = range(6)
_LIGHTING = _AUTO_AUGMENT + SLOTS

_TOLD_IF_SET = ("cutout_fill", "lighting")


@dataclass(frozen=True)
class Augment:
    """What is done to a training image; the defaults do nothing.

    Attributes:
        crop_padding: pixels added on each side before a random crop of the image's own size.
        crop_fill: grey level 0 … 255 of those pixels.
        flip: mirror left to right half of the time.
        auto_augment: the policy's name: cifar10 has torchvision's pixels, cifar10-released those of the DiSK authors'
            release, which are Pillow's.
        cutout: side in pixels of the square that is painted over; its centre is uniform over the
            image, the rest of it that falls outside is lost (DeVries and Taylor, arXiv 1708.04552).
        cutout_fill: what it is painted with: the mean colour, which normalises to zero, or a grey level 0 … 255; the
            DiSK authors' release paints it black, 0.
        lighting: standard deviation of PCA lighting of colour images, 0.1 in its paper; 0: none. It falls on all
            pixels, also on those that were filled or painted.

    Raises:
        ConfigError: for a value out of range.
    """

    crop_padding: int = 0
    crop_fill: int = 128
    flip: bool = False
    auto_augment: AutoAugmentName = "none"
    cutout: int = 0
    cutout_fill: Literal["mean"] | int = "mean"
    lighting: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment.{name} is a number of pixels >= 0, got {getattr(self, name)}")
        if not 0 <= self.crop_fill <= 255:
            raise ConfigError(f"augment.crop_fill is a grey level 0 … 255, got {self.crop_fill}")
        if self.cutout_fill != "mean" and not (isinstance(self.cutout_fill, int) and 0 <= self.cutout_fill <= 255):
            raise ConfigError(f"augment.cutout_fill is mean or a grey level 0 … 255, got {self.cutout_fill!r}")
        if not 0 <= self.lighting < math.inf:
            raise ConfigError(f"augment.lighting is a finite standard deviation >= 0, got {self.lighting}")
        if self.auto_augment not in get_args(AutoAugmentName):
            valid = nearest(self.auto_augment, get_args(AutoAugmentName))
            raise ConfigError(f"augment.auto_augment names a policy, got {self.auto_augment!r}; {valid}")

    def facts(self) -> dict[str, Any]:
        """The settings by name, as stored teacher outputs tell them.

        Those of `_TOLD_IF_SET` are left out at their defaults, so that stores that do not tell them stay valid.
        """
        settings = asdict(self).items()
        return {name: value for name, value in settings if name not in _TOLD_IF_SET or value != getattr(Augment, name)}


def augment(images: Tensor, seeds: Tensor, settings: Augment, mean_C: Tensor | None = None) -> Tensor:
    """Augments each image by its own seed, in everything but `settings.lighting`.

    Args:
        images: uint8 (B, C, H, W), with 1 or 3 channels for AutoAugment.
        seeds: int64 (B,) of `sample_seeds`, on the same device.
        settings: which steps, and how strong.
        mean_C: uint8 (C,), the mean colour, for cutout; `settings.crop_fill` without it. The loader gives the
            mean it normalises by: the square is then 0 to half a grey level.

    Returns:
        uint8 (B, C, H, W); the images themselves when no step is on.
    """
    if settings.crop_padding or settings.flip:
        images = _crop_and_flip(images, seeds, settings)
    if settings.auto_augment != "none":
        images = auto_augment(images, seeds, _AUTO_AUGMENT, _POLICIES[settings.auto_augment])
    if settings.cutout:
        images = _cutout(images, seeds, settings.cutout, _cutout_colour(images, settings, mean_C))
    return images


def lighting_shift(seeds: Tensor, settings: Augment) -> Tensor:
    """What lighting adds to red, green and blue in [0, 1] of each image: float64 (B, 3)."""
    return lighting(seeds, settings.lighting, _LIGHTING)


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


def _cutout_colour(images: Tensor, settings: Augment, mean_C: Tensor | None) -> Tensor:
    if settings.cutout_fill == "mean" and mean_C is not None:
        return mean_C
    level = settings.crop_fill if settings.cutout_fill == "mean" else settings.cutout_fill
    return images.new_full((images.shape[1],), level)


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
