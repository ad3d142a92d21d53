"""Zero-shot teachers: class names and prompts become a classifier by a CLIP-like model."""

from disk_kd.zeroshot.run import ZERO_SHOT_FILE, ZeroShotResult, zero_shot
from disk_kd.zeroshot.settings import TEMPLATES, ZeroShotSettings, read_zero_shot
from disk_kd.zeroshot.words import class_words

__all__ = [
    "TEMPLATES",
    "ZERO_SHOT_FILE",
    "ZeroShotResult",
    "ZeroShotSettings",
    "class_words",
    "read_zero_shot",
    "zero_shot",
]
