"""Mixup and cutmix: pairs of images of a batch are mixed, and their labels in the same proportion.

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
    """timm's `Mixup`. By default nothing is mixed.

    Attributes:
        mixup: Alpha of the Beta distribution of mixup. 0 turns mixup off.
        cutmix: Alpha of the Beta distribution of cutmix. 0 turns cutmix off.
        prob: Probability that a batch is mixed (with `mode` pair or elem: that a pair or an image is mixed).
        switch_prob: Probability of cutmix instead of mixup, if both are on.
        mode: Draw the mixing once for each batch, for each pair of images, or for each image (elem).

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
        """Whether anything is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.prob > 0


def mix(images: Tensor, targets: Tensor, settings: Mix, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mixes the i-th image of the batch with the i-th image from its end.

    Args:
        images: float (B, C, H, W), changed in place; B is even.
        targets: int64 (B,).
        settings: the mixing.
        classes: K.
        seed: seed of the random draws.

    Returns:
        The images, and float32 (B, K) label probabilities; each row sums to 1.
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
