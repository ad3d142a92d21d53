"""The loop, its step, its checkpoints and logs."""

from disk_kd.train.compiling import compile_where_it_pays
from disk_kd.train.display import Display, JsonConsole, RunConsole, drop_output, json_line
from disk_kd.train.log import Meter
from disk_kd.train.loop import BEST, CHECKPOINT, DivergenceError, Position, evaluated, fit
from disk_kd.train.optim import make_optimizer
from disk_kd.train.parallel import prepare_ranks
from disk_kd.train.settings import TrainSettings
from disk_kd.train.step import TrainStep
from disk_kd.train.stop import STOPPED, StoppedError, StopSignal, stop_signals
from disk_kd.train.tracking import Tracker, check_logger, tracked

__all__ = [
    "BEST",
    "CHECKPOINT",
    "STOPPED",
    "Display",
    "DivergenceError",
    "JsonConsole",
    "Meter",
    "Position",
    "RunConsole",
    "StopSignal",
    "StoppedError",
    "Tracker",
    "TrainSettings",
    "TrainStep",
    "check_logger",
    "compile_where_it_pays",
    "drop_output",
    "evaluated",
    "fit",
    "json_line",
    "make_optimizer",
    "prepare_ranks",
    "stop_signals",
    "tracked",
]
