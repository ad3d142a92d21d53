"""Training: the loop, its step, checkpoints and logs."""

from disk_kd.training.compiling import compile_where_it_pays
from disk_kd.training.display import Display, JsonConsole, RunConsole, drop_output, json_line
from disk_kd.training.log import Meter
from disk_kd.training.loop import BEST, CHECKPOINT, DivergenceError, Position, evaluated, fit
from disk_kd.training.optim import make_optimizer
from disk_kd.training.parallel import prepare_ranks
from disk_kd.training.quantise import load_ranges, prepare_quantisation, ranges_of
from disk_kd.training.settings import TrainSettings
from disk_kd.training.step import TrainStep
from disk_kd.training.stop import STOPPED, StoppedError, StopSignal, stop_signals
from disk_kd.training.tracking import Tracker, check_logger, tracked

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
    "load_ranges",
    "make_optimizer",
    "prepare_quantisation",
    "prepare_ranks",
    "ranges_of",
    "stop_signals",
    "tracked",
]
