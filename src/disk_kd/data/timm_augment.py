"""timm's augmentation of image files: from a PIL image to uint8 pixels.

Shapes: C channels, S side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class TimmAugment:
    """timm's augmentation of image files, used instead of the centre crop. Names and values are timm's.

    Attributes:
        enabled: Augment image files with timm. The other data.timm options need it.
        scale: Range of the random crop's area, as a fraction of the image's area.
        ratio: Range of the random crop's aspect ratio (width / height).
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of random changes in brightness, contrast and saturation. Give one number for all, or
            three numbers; a fourth, at most 0.5, changes the hue. It has no effect if `auto_augment` is set.
        auto_augment: timm's AutoAugment or RandAugment policy, such as rand-m9-mstd0.5-inc1. null turns it off.
        interpolation: Interpolation of the random crop.
        reprob: Probability of random erasing. It works on images in ImageNet normalisation, as in timm.
        remode: Content of erased areas: const (the mean), rand (one random colour) or pixel (noise).
        recount: Maximum number of erased areas in an image.
        repeats: Number of copies of a sample in a batch, each with its own augmentation (repeated augmentation). An
            epoch then covers fewer samples.

    Raises:
        ConfigError: timm refuses a value, or a value is given but `enabled` is false.
    """

    enabled: bool = False
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | tuple[float, ...] = 0.4
    auto_augment: str | None = None
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    reprob: float = 0.0
    remode: Literal["const", "rand", "pixel"] = "const"
    recount: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        if not self.enabled:
            given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
            if given:
                raise ConfigError(f"data.timm.{given[0]} has no effect unless data.timm.enabled is true")
            return
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high < math.inf:
                raise ConfigError(
                    f"data.timm.{name} goes from a number above 0 to a finite one not below it, got {low}, {high}"
                )
        for name in ("hflip", "vflip", "reprob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.timm.{name} is a chance in [0, 1], got {getattr(self, name)}")
        for name in ("recount", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.timm.{name} is a number of at least 1, got {getattr(self, name)}")
        jitter = self.color_jitter
        strengths = (jitter,) * 3 if isinstance(jitter, int | float) else jitter
        possible = all(0 <= strength < math.inf for strength in strengths)
        if len(strengths) not in (3, 4) or not possible or max(strengths[3:], default=0) > 0.5:
            raise ConfigError(
                "data.timm.color_jitter is a finite strength of at least 0, or three or four of them, the fourth at "
                f"most 0.5, got {jitter}"
            )
        try:
            self.transform(32)
        except Exception as error:  # timm asserts
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"timm refuses data.timm ({reason}); see its auto_augment strings") from error

    def transform(self, image_size: int) -> Any:
        """timm's transform from a PIL image to uint8 (C, S, S). It draws from the global random states."""
        return create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,  # then it ends with uint8 pixels
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            interpolation=self.interpolation,
        )

    def erase(self, pixels: Tensor) -> Tensor:
        """Random erasing of uint8 (C, S, S)."""
        if not self.reprob:
            return pixels
        erasing = RandomErasing(self.reprob, mode=self.remode, max_count=self.recount, device="cpu")
        # It fills NaN pixels with values in units of the normalised image.
        fill = erasing(torch.full(pixels.shape, torch.nan))
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        painted = (255 * (fill * std + mean)).round().clamp(0, 255)
        return torch.where(fill.isnan(), pixels, painted.nan_to_num().to(torch.uint8))


NO_AUGMENT = TimmAugment()
