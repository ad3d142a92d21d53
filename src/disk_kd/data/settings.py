"""Which images a run reads, and what is done to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from disk_kd.data.augment import Augment
from disk_kd.data.mix import Mix
from disk_kd.data.timm_augment import TimmAugment
from disk_kd.errors import ConfigError
from disk_kd.options import environment


@dataclass(frozen=True)
class DataSettings:
    """The dataset and its augmentation.

    Args:
        name: a dataset of `disk-kd list datasets`, or a timm reader such as hfds/user/name.
        root: folder of the data, for datasets that are not embedded.
        image_size: side in pixels that images are brought to; null: as they are.
        download: allow the dataset to be downloaded to `root`.
        validation: share of the training samples, per class, that selects the checkpoint.
        limit_train: keep only so many training samples, per class alike; null: all.
        limit_test: keep only so many test samples, per class alike and the same ones for every seed; null: all.
        label_noise: share of training labels to replace by a wrong one.
        split_seed: of the validation split, the limit and the noise.
        views: number of different augmentations of a sample, met in turn; null: a new one each epoch.
        view_seed: of those augmentations, so that runs of several seeds share a teacher's stored outputs.
        augment: what is done to the images, in memory or streamed.
        crop_pct: share of the shorter side of a file that evaluation sees, around its centre.
        grey_bits: scale grey images of 16 bits to 8. It is the number of bits b, 9 to 16, that their values use: 16 for
            the whole range, 12 for many cameras and scanners; a value v becomes 255 v / (2^b - 1). null: refuse them.
        stream: read image files as they are needed, instead of into memory; auto: where data.timm is enabled, or they
            would take more than half of the free memory.
        timm: timm's augmentation of streamed training files.
        workers: processes that decode streamed files; null: one for each core that this process has.
        skip_unreadable: leave out damaged image files, with a warning, instead of refusing them.
        mix: mixup and cutmix of training batches.
    """

    name: str = "digits"
    root: Path | None = None
    image_size: int | None = None
    download: bool = environment(False)
    validation: float = 0.1
    limit_train: int | None = None
    limit_test: int | None = None
    label_noise: float = 0.0
    split_seed: int = 0
    views: int | None = None
    view_seed: int = 0
    augment: Augment = field(default_factory=Augment)
    crop_pct: float = 1.0
    grey_bits: int | None = None
    stream: Literal["auto"] | bool = environment("auto")
    timm: TimmAugment = field(default_factory=TimmAugment)
    workers: int | None = environment(None)
    skip_unreadable: bool = False
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        ranges = {"image_size": (1, 10_000), "views": (1, 1_000_000), "grey_bits": (9, 16)}
        for name, (least, most) in (ranges | dict.fromkeys(("limit_train", "limit_test"), (1, math.inf))).items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                upper = f"from {least} to {most:,}" if most < math.inf else f"at least {least}"
                raise ConfigError(f"data.{name} must be {upper}, or null, not {value}")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"data.validation must be a share in [0, 1), not {self.validation}")
        if not 0 <= self.label_noise <= 1:
            raise ConfigError(f"data.label_noise must be a share in [0, 1], not {self.label_noise}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"data.crop_pct must be a share of the shorter side in (0, 1], not {self.crop_pct}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"data.workers must be at least 0 or null, not {self.workers}")
