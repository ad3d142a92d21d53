"""Augmentation of a batch of uint8 images on its own device: crop, flip, AutoAugment, cutout.

The result depends only on the image and its seed, not on the batch, its order or global random states. The order of
the steps is that of the DiSK paper's CIFAR runs. PCA lighting shifts pixels by fractions of a grey level, so it is
applied later, to float images (`lighting_shift`).

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

# Each draw has a fixed slot, so that switching one step off does not change the others.
_CROP_Y, _CROP_X, _FLIP, _CUTOUT_Y, _CUTOUT_X, _AUTO_AUGMENT = range(6)
_LIGHTING = _AUTO_AUGMENT + SLOTS

_RECORDED_IF_SET = ("cutout_fill", "lighting")


@dataclass(frozen=True)
class Augment:
    """Augmentation of a training image. The defaults change nothing.

    Attributes:
        crop_padding: Pixels added on each side before a random crop back to the image's size. 0 turns the crop off.
        crop_fill: Grey level of the added pixels, from 0 to 255.
        flip: Mirror the image horizontally with probability 0.5.
        auto_augment: AutoAugment policy. cifar10 computes the same pixels as torchvision; cifar10-released computes
            those of the DiSK authors' release, which uses Pillow.
        cutout: Side in pixels of a square that is painted over (cutout; DeVries and Taylor, arXiv 1708.04552). The
            centre of the square is uniform over the image; parts outside the image are cut off. 0 turns cutout off.
        cutout_fill: Fill of the cutout square: mean (the mean colour, 0 after normalisation) or a grey level from 0 to
            255. The DiSK authors' release uses 0 (black).
        lighting: Standard deviation of PCA lighting of colour images; the paper that introduced it uses 0.1. It changes
            all pixels, also filled and painted ones. 0 turns it off.

    Raises:
        ConfigError: a value is out of range.
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
        """The settings by name, as a teacher store records them.

        The settings in `_RECORDED_IF_SET` are left out at their defaults. Stores from before these settings stay valid.
        """
        settings = asdict(self).items()
        return {key: value for key, value in settings if key not in _RECORDED_IF_SET or value != getattr(Augment, key)}


def augment(images: Tensor, seeds: Tensor, settings: Augment, mean_C: Tensor | None = None) -> Tensor:
    """Augments each image by its own seed. All settings apply except `settings.lighting`.

    Args:
        images: uint8 (B, C, H, W). AutoAugment needs 1 or 3 channels.
        seeds: int64 (B,) from `sample_seeds`, on the same device.
        settings: the augmentation.
        mean_C: uint8 (C,), the mean colour, used to fill cutout; None: `settings.crop_fill`. The loader gives the mean
            that it normalises by, so that the square is 0 to within half a grey level.

    Returns:
        uint8 (B, C, H, W). The same tensor if no augmentation is on.
    """
    if settings.crop_padding or settings.flip:
        images = _crop_and_flip(images, seeds, settings)
    if settings.auto_augment != "none":
        images = auto_augment(images, seeds, _AUTO_AUGMENT, _POLICIES[settings.auto_augment])
    if settings.cutout:
        images = _cutout(images, seeds, settings.cutout, _cutout_colour(images, settings, mean_C))
    return images


def lighting_shift(seeds: Tensor, settings: Augment) -> Tensor:
    """The shift that lighting adds to the red, green and blue of each image, in units of [0, 1]: float64 (B, 3)."""
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
