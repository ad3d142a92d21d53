"""timm's augmentation of image files: from a picture to uint8 pixels.

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
    """timm's augmentation of image files, in the place of the centre crop; names and values are timm's.

    Attributes:
        enabled: augment with timm.
        scale: share of the image's area that a random crop has, from and to.
        ratio: the crop's width over its height, from and to.
        hflip: chance of a mirrored image.
        vflip: chance of one upside down.
        color_jitter: strength of changes of brightness, contrast and saturation, or one for each of them and, as a
            fourth, that of the hue, at most 0.5; without effect where `auto_augment` is given.
        auto_augment: a policy such as rand-m9-mstd0.5-inc1; null: none.
        interpolation: of the crop: bilinear, bicubic or random.
        reprob: chance of random erasing, in timm's normalisation of ImageNet.
        remode: what erased pixels become: const (the mean), rand (a colour) or pixel (noise).
        recount: most areas that are erased.
        repeats: how often a sample stands in a batch, each time in another view (repeated augmentation; an epoch then
            holds fewer samples).

    Raises:
        ConfigError: timm refuses a value, or values are given while it is off.
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
            said = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"timm refuses data.timm ({said}); see its auto_augment strings") from error

    def transform(self, image_size: int) -> Any:
        """PIL image to uint8 (C, S, S), by the global random states."""
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
        # What it writes into numbers that are none is the fill; it is in units of the normalised image.
        fill = erasing(torch.full(pixels.shape, torch.nan))
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        painted = (255 * (fill * std + mean)).round().clamp(0, 255)
        return torch.where(fill.isnan(), pixels, painted.nan_to_num().to(torch.uint8))


NO_AUGMENT = TimmAugment()
