"""Time until a student reaches a validation accuracy, with this project and with other tools, in turns."""

from disk_kd.bench.to_accuracy.contestants import CONTESTANTS, DEFAULT
from disk_kd.bench.to_accuracy.run import Race, to_accuracy

__all__ = ["CONTESTANTS", "DEFAULT", "Race", "to_accuracy"]
