"""Settings of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from disk_kd.errors import ConfigError
from disk_kd.models.settings import ModelSettings
from disk_kd.options import environment


@dataclass(frozen=True)
class TeacherSettings(ModelSettings):
    """The trained model to learn from. Methods without a teacher ignore it.

    Args:
        image_size: Side in pixels of the images that the teacher gets. null takes the size that the file of weights
            records, else the student's size.
        precision: Precision of the teacher: fp32, or autocast to bf16 or fp16. auto takes bf16 on an accelerator, else
            fp32.
        store: Run the teacher once over all views and store its outputs in RUNS/teacher-store. All runs with the same
            teacher, data and augmentation share them. The size is 2 bytes for each class, sample and view, and 2 bytes
            for each number of a feature map that the method reads. false runs the teacher in every step. auto stores
            the outputs if views repeat or if all views take at most 1 GiB, and if the disk has room; without data.views
            it gives as many epochs as possible their own view. The run's config.yaml records the decision.
        store_top_k: Store only the K largest logits of each sample (4 bytes each) and the sum of the others. It pays
            with a thousand classes or more; `disk-kd store-teacher` prints the error. null stores all logits.
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
