"""The loop, its checkpoints and logs."""

from disk_kd.train.log import Display
from disk_kd.train.loop import BEST, CHECKPOINT, DivergenceError, Position, evaluated, fit
from disk_kd.train.settings import TrainSettings

__all__ = [
    "BEST",
    "CHECKPOINT",
    "Display",
    "DivergenceError",
    "Position",
    "TrainSettings",
    "evaluated",
    "fit",
]
