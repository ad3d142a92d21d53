"""Mixup and cutmix: images of a batch mixed in pairs, and their labels in the same proportion.

Shapes: B images, C channels, H rows, W columns; K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from timm.data import Mixup
from torch import Tensor

from disk_kd.data.seeds import seeded
from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """timm's `Mixup`; nothing is mixed by default.

    Attributes:
        mixup: alpha of mixup's Beta distribution; 0: none.
        cutmix: alpha of cutmix's; 0: none.
        prob: chance that a batch (or image, or pair) is mixed.
        switch_prob: chance of cutmix where both are on.
        mode: draw once for a batch, a pair of images or each image (elem).

    Raises:
        ConfigError: a value is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"data.mix.{name} is a finite alpha of at least 0, got {getattr(self, name)}")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.mix.{name} is a chance in [0, 1], got {getattr(self, name)}")

    @property
    def on(self) -> bool:
        """Whether anything is mixed at all."""
        return (self.mixup > 0 or self.cutmix > 0) and self.prob > 0


def mix(images: Tensor, targets: Tensor, settings: Mix, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mixes each image with the one that stands as far from the batch's other end.

    Args:
        images: float (B, C, H, W), changed in place; B is even.
        targets: int64 (B,).
        settings: what is mixed.
        classes: K.
        seed: of the draws.

    Returns:
        The images, and float32 (B, K): each label's share, rows of sum 1.
    """
    mixup = Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        prob=settings.prob,
        switch_prob=settings.switch_prob,
        mode=settings.mode,
        label_smoothing=0.0,
        num_classes=classes,
    )
    with seeded(seed):
        mixed: tuple[Tensor, Tensor] = mixup(images, targets)
    return mixed
