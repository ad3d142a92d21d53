"""The loop, its step, its checkpoints and logs."""

from disk_kd.train.compiling import compile_where_it_pays
from disk_kd.train.log import Display, Meter
from disk_kd.train.loop import BEST, CHECKPOINT, DivergenceError, Position, evaluated, fit
from disk_kd.train.optim import make_optimizer
from disk_kd.train.settings import TrainSettings
from disk_kd.train.step import TrainStep

__all__ = [
    "BEST",
    "CHECKPOINT",
    "Display",
    "DivergenceError",
    "Meter",
    "Position",
    "TrainSettings",
    "TrainStep",
    "compile_where_it_pays",
    "evaluated",
    "fit",
    "make_optimizer",
]
