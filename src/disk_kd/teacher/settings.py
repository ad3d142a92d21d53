"""Which teacher a run learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from disk_kd.errors import ConfigError
from disk_kd.models.settings import ModelSettings
from disk_kd.options import environment


@dataclass(frozen=True)
class TeacherSettings(ModelSettings):
    """The trained model to learn from; a method without a teacher leaves it alone.

    Args:
        image_size: side in pixels that the teacher sees; null: of the images that it learned from, where the file of
            its weights says it, else the student's images as they are.
        precision: fp32, or autocast to bf16 or fp16; auto: bf16 on an accelerator, else fp32.
        store: run the teacher once over all data.views and keep its outputs in RUNS/teacher-store, for this run and all
            others of the same teacher, data and augmentation: 2 bytes per class, sample and view (feature maps, where
            the method reads them, 2 bytes per number). false: the teacher runs at each step. auto: stored where views
            are met again or take at most 1 GiB in all, and the disk has room; without data.views, each epoch then has
            a view of its own as far as that goes. What was decided stands in the run's config.yaml.
        store_top_k: keep only so many of a sample's largest logits, 4 bytes each, and the sum of the others; for a
            thousand classes and more. `disk-kd store-teacher` states the error. null: all logits.
    """

    name: str = "cifar_resnet10_l"
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    store: Literal["auto"] | bool = environment("auto")
    store_top_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"teacher.image_size must be at least 1 or null, not {self.image_size}")
        if self.store_top_k is not None and self.store_top_k < 1:
            raise ConfigError(f"teacher.store_top_k must be at least 1 or null, not {self.store_top_k}")
